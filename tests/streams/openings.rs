//! What fails before the first event is an answer, not a stream: one HEADERS frame that ends it.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::Request;
use prost::Message as _;
use runs_gateway::v1::{StreamCreateRunRequest, StreamOptions};
use tokio::net::TcpStream;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    script::{create, create_with, error, event, millis, run, soon, verdict},
    support::{
        gateway::{Gateway, spawn_gateway},
        upstream::{Answer, Upstream},
    },
};

/// Calls `StreamCreateRun` and expects an answer of headers alone.
async fn refused(gateway: &Gateway, request: &StreamCreateRunRequest) -> Status {
    let socket = TcpStream::connect(gateway.address())
        .await
        .expect("a connection");
    let (client, connection) = h2::client::handshake(socket).await.expect("a handshake");
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await.expect("a stream");
    let request_head = Request::post("http://gateway/runsgateway.v1.RunService/StreamCreateRun")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .expect("a request");
    let (answer, mut body) = client.send_request(request_head, false).expect("a stream");
    body.send_data(framed(request), true).expect("a window");
    let answer = soon(answer).await.expect("an answer");
    assert!(answer.body().is_end_stream(), "{answer:?}");
    connection.abort();
    Status::from_header_map(answer.headers()).expect("a status in the headers")
}

/// A message as gRPC frames it.
fn framed(message: &StreamCreateRunRequest) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.encoded_len()).expect("a small message"));
    message.encode(&mut frame).expect("room");
    frame.freeze()
}

#[tokio::test]
async fn an_early_error_is_trailers_only() {
    let cases = [
        (
            Answer::json(500, error("server_error")),
            Code::Internal,
            "SERVER_ERROR",
        ),
        (Answer::new(503), Code::Unknown, "OUTCOME_UNKNOWN"),
        (
            Answer::json(400, error("bad")),
            Code::InvalidArgument,
            "INVALID_REQUEST",
        ),
        (
            Answer::json(401, error("invalid_api_key")),
            Code::Unauthenticated,
            "INVALID_API_KEY",
        ),
        (
            Answer::json(404, error("not_found")),
            Code::NotFound,
            "NOT_FOUND",
        ),
        (
            Answer::cut_before_answer(),
            Code::Unknown,
            "OUTCOME_UNKNOWN",
        ),
        (
            Answer::new(200)
                .header("content-type", "text/html")
                .bytes("<html>"),
            Code::Internal,
            "UNUSABLE_ANSWER",
        ),
    ];
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    for (answer, code, reason) in cases {
        upstream.push(answer);
        assert_eq!(
            verdict(&refused(&gateway, &create()).await),
            (code, reason.to_owned())
        );
    }

    // Not even a request upstream.
    let hasty = StreamOptions {
        heartbeat_interval: Some(prost_types::Duration {
            seconds: 0,
            nanos: 999_999_999,
        }),
        ..StreamOptions::default()
    };
    let backwards = StreamOptions {
        heartbeat_interval: Some(prost_types::Duration {
            seconds: -1,
            nanos: 0,
        }),
        ..StreamOptions::default()
    };
    for request in [
        create_with(hasty),
        create_with(backwards),
        StreamCreateRunRequest {
            run: None,
            ..create()
        },
    ] {
        let asked = upstream.requests().len();
        assert_eq!(
            verdict(&refused(&gateway, &request).await),
            (Code::InvalidArgument, "INVALID_FIELD".to_owned())
        );
        assert_eq!(upstream.requests().len(), asked);
    }
    gateway.drain().await;
}

#[tokio::test]
async fn a_429_says_how_long_to_wait() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    upstream.push(Answer::json(429, error("rate_limit_exceeded")).header("retry-after", "2"));
    let status = refused(&gateway, &create()).await;
    assert_eq!(
        verdict(&status),
        (Code::ResourceExhausted, "RATE_LIMIT_EXCEEDED".to_owned())
    );
    assert_eq!(
        status
            .get_details_retry_info()
            .expect("a RetryInfo")
            .retry_delay,
        Some(millis(2000))
    );
    assert_eq!(
        status
            .metadata()
            .get("grpc-retry-pushback-ms")
            .expect("a pushback"),
        "2000"
    );
    gateway.drain().await;
}

#[tokio::test]
async fn one_live_stream_too_many_is_refused_and_a_closed_one_gives_its_place_back() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &["--max-live-streams", "1"]).await;
    let live = || {
        Answer::sse([event("thread.run.created", run("queued"))]).step(
            crate::support::upstream::Step::Wait(std::sync::Arc::default()),
        )
    };
    for connection in 0..2 {
        upstream.push(live());
        let stream = gateway
            .runs()
            .stream_create_run(create())
            .await
            .expect("a place");
        let status = refused(&gateway, &create()).await;
        assert_eq!(
            verdict(&status),
            (Code::Unavailable, "GATEWAY_OVERLOADED".to_owned())
        );
        assert!(status.get_details_retry_info().is_some());
        drop(stream);
        upstream.closed(connection).await;
    }
    gateway.drain().await;
}
