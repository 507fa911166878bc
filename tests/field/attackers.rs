//! What attackers do.

use std::{sync::Arc, time::Duration};

use http::Method;
use runs_gateway::v1::GetRunRequest;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
    time::timeout,
};
use tonic::{
    Code, Request,
    metadata::{Ascii, MetadataKey},
};
use tonic_types::StatusExt as _;

use crate::{
    clients::send,
    support::{
        gateway::{Gateway, spawn_gateway},
        program::Running,
        upstream::{Answer, Upstream},
    },
};

fn get() -> GetRunRequest {
    GetRunRequest {
        thread_id: "thread_1".to_owned(),
        run_id: "run_1".to_owned(),
    }
}

#[tokio::test]
async fn a6_metadata_above_the_limit_is_resource_exhausted() {
    let upstream = Upstream::start().await;
    let origins = ["--web-origins", "https://app.example"];
    for flags in [&[][..], &origins] {
        let gateway = spawn_gateway(&upstream.url(), flags).await;
        let types: &[&str] = if flags.is_empty() {
            &["application/grpc"]
        } else {
            &["application/grpc", "application/grpc-web"]
        };
        for content_type in types {
            for size in [17 << 10, 50 << 10] {
                let value = "x".repeat(size);
                let headers = [("content-type", *content_type), ("a", &value)];
                let path = "/runsgateway.v1.RunService/GetRun";
                let seen = send(&gateway, Method::POST, path, &headers, vec![0; 5]).await;
                assert_eq!((seen.http, seen.code()), (200, Code::ResourceExhausted));
                assert_eq!(seen.reason(), "REQUEST_TOO_LARGE");
                let status = seen.status();
                assert!(
                    status
                        .message()
                        .contains("16384 bytes (--max-metadata-bytes)")
                );
            }
        }
        gateway.drain().await;
    }
}

/// Other calls on the connection go on.
#[tokio::test]
async fn a6_far_too_much_metadata_is_refused_alone() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    let mut other = gateway.runs();
    let rows = [
        ("one value", 1, 60 << 10),
        ("120 kB in one value", 1, 120_000),
        ("120 kB in ten", 10, 12_000),
        ("120 kB in many", 1000, 120),
        ("200 kB", 4, 50_000),
    ];
    for (at, (row, pieces, size)) in rows.into_iter().enumerate() {
        let pending = Arc::new(Notify::new());
        let run = r#"{"id":"run_1","thread_id":"thread_1","status":"queued"}"#;
        upstream.push(Answer::new(200).chunked().wait(&pending).bytes(run));
        let beside = tokio::spawn({
            let mut other = other.clone();
            async move { other.get_run(get()).await }
        });
        upstream.wait_for_requests(at + 1).await;
        let mut request = Request::new(get());
        for piece in 0..pieces {
            let name: MetadataKey<Ascii> = format!("x-{piece}").parse().expect("a name");
            let value = "x".repeat(size).parse().expect("a value");
            request.metadata_mut().insert(name, value);
        }
        let status = other.get_run(request).await.expect_err(row);
        let reason = status.get_details_error_info().map(|info| info.reason);
        assert_eq!(
            (status.code(), reason.as_deref()),
            (Code::ResourceExhausted, Some("REQUEST_TOO_LARGE")),
            "{row}: {status:?}"
        );
        pending.notify_one();
        beside
            .await
            .expect("a task")
            .expect("the other call goes on");
    }
    gateway.drain().await;
}

#[tokio::test]
async fn a8_connections_that_are_closed_for_their_resets_are_one_line_a_second() {
    let upstream = Upstream::start().await;
    let flags = [
        "--upstream-url",
        &upstream.url(),
        "--max-error-resets",
        "1",
        "--log",
        "warn",
    ];
    let gateway = Running::start(&flags).await;
    for _ in 0..50 {
        let mut stream = TcpStream::connect(gateway.address)
            .await
            .expect("a connection");
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        // Calls with a window update of nothing: a stream error each.
        for number in [1_u8, 3, 5, 7, 9] {
            bytes.extend([0, 0, 3, 1, 4, 0, 0, 0, number, 0x83, 0x86, 0x84]);
            bytes.extend([0, 0, 4, 8, 0, 0, 0, 0, number, 0, 0, 0, 0]);
        }
        stream.write_all(&bytes).await.expect("written");
        let mut heard = Vec::new();
        let closed = timeout(Duration::from_secs(10), stream.read_to_end(&mut heard)).await;
        assert!(closed.is_ok(), "the connection is closed");
    }
    let (_, log) = gateway.stop("-TERM").await;
    let lines: Vec<_> = log.lines().collect();
    let closed = lines
        .iter()
        .filter(|line| line.contains("what its peer did"))
        .count();
    assert!((1..=20).contains(&closed), "{lines:#?}");
    assert!(lines.len() <= 40, "{lines:#?}");
}

#[tokio::test]
async fn a9_silent_connections_on_the_admin_port_give_way() {
    let upstream = Upstream::start().await;
    let gateway = Running::start(&["--upstream-url", &upstream.url()]).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(
            TcpStream::connect(gateway.admin)
                .await
                .expect("a connection"),
        );
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        let asked = timeout(Duration::from_secs(3), gateway.ask_admin(path)).await;
        assert_eq!(asked.expect("in time").0, 200);
    }
    drop(silent);
}

/// The status of the answer to what is said over HTTP/1.1.
async fn say(gateway: &Gateway, head: &str) -> String {
    let mut stream = TcpStream::connect(gateway.address())
        .await
        .expect("a connection");
    stream.write_all(head.as_bytes()).await.expect("written");
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await.expect("an answer");
    String::from_utf8(answer).expect("a status line")
}

#[tokio::test]
async fn a10_a_request_of_http_1_names_its_one_host() {
    let upstream = Upstream::start().await;
    let origins = ["--web-origins", "https://app.example"];
    let gateway = spawn_gateway(&upstream.url(), &origins).await;
    let rest = "content-type: application/grpc-web\r\ncontent-length: 0\r\n\r\n";
    for (version, hosts, status) in [
        ("1.1", "", 400),
        ("1.1", "host: a\r\nhost: a\r\n", 400),
        ("1.1", "host: a b\r\n", 400),
        ("1.1", "host: \r\n", 400),
        ("1.1", "host: u@a\r\n", 400),
        ("1.1", "host: a:8080\r\n", 200),
        ("1.1", "host: [::1]:80\r\n", 200),
        ("1.0", "", 200),
        ("1.0", "host: a\r\nhost: b\r\n", 400),
    ] {
        let head = format!("POST /none/None HTTP/{version}\r\n{hosts}{rest}");
        let answer = say(&gateway, &head).await;
        assert!(
            answer.ends_with(&status.to_string()),
            "{version} {hosts:?}: {answer}"
        );
    }
    gateway.drain().await;
}
