//! What clients send.

use bytes::Bytes;
use flate2::{
    Compression,
    read::{GzDecoder, GzEncoder},
};
use http::{HeaderMap, Method, Request};
use prost::Message as _;
use runs_gateway::v1::{
    CreateRunRequest, GetRunRequest, Run, RunSpec, StreamCreateRunRequest, Tool, WatchRunRequest,
};
use std::io::Read as _;
use tokio::{net::TcpStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt as _;

use crate::support::{
    gateway::{Gateway, spawn_gateway},
    upstream::{Answer, Upstream},
};

const RUN: &str =
    r#"{"id":"run_1","object":"thread.run","thread_id":"thread_1","status":"completed"}"#;
const CREATE: &str = "/runsgateway.v1.RunService/CreateRun";
const GET: &str = "/runsgateway.v1.RunService/GetRun";

/// An answer, read to its end.
pub(crate) struct Seen {
    pub(crate) http: u16,
    pub(crate) head: HeaderMap,
    pub(crate) body: Vec<u8>,
    trailers: HeaderMap,
}

impl Seen {
    /// The status of gRPC.
    pub(crate) fn status(&self) -> Status {
        Status::from_header_map(&self.head)
            .or_else(|| Status::from_header_map(&self.trailers))
            .expect("a status")
    }

    pub(crate) fn code(&self) -> Code {
        self.status().code()
    }

    pub(crate) fn reason(&self) -> String {
        let details = self.status().get_error_details();
        details
            .error_info()
            .map_or_else(String::new, |info| info.reason.clone())
    }
}

/// Sends a request of HTTP/2 with these headers and this body.
pub(crate) async fn send(
    gateway: &Gateway,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Seen {
    let stream = TcpStream::connect(gateway.address())
        .await
        .expect("a connection");
    let (requests, connection) = h2::client::handshake(stream).await.expect("a handshake");
    tokio::spawn(connection);
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://gateway{path}"));
    if !headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/grpc");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut requests = requests.ready().await.expect("an open connection");
    let request = request.body(()).expect("a request");
    let (answer, mut sending) = requests.send_request(request, false).expect("a stream");
    // Refused before all of it is sent, maybe.
    let _ = sending.send_data(body.into(), true);
    let (head, mut body) = answer.await.expect("an answer").into_parts();
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data: Bytes = data.expect("a whole answer");
        bytes.extend_from_slice(&data);
        body.flow_control()
            .release_capacity(data.len())
            .expect("capacity");
    }
    let trailers = body.trailers().await.expect("trailers").unwrap_or_default();
    Seen {
        http: head.status.as_u16(),
        head: head.headers,
        body: bytes,
        trailers,
    }
}

fn frame(packed: u8, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    [&[packed], &length[..], message].concat()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    GzEncoder::new(bytes, Compression::default())
        .read_to_end(&mut packed)
        .expect("gzip");
    packed
}

fn create(instructions: usize) -> CreateRunRequest {
    CreateRunRequest {
        thread_id: "thread_1".to_owned(),
        run: Some(RunSpec {
            assistant_id: "asst_1".to_owned(),
            instructions: Some("x".repeat(instructions)),
            ..RunSpec::default()
        }),
        include: vec![],
        ..CreateRunRequest::default()
    }
}

fn get() -> Vec<u8> {
    GetRunRequest {
        thread_id: "thread_1".to_owned(),
        run_id: "run_1".to_owned(),
    }
    .encode_to_vec()
}

#[tokio::test]
async fn c1_only_post_is_a_call() {
    let upstream = Upstream::start().await;
    let origins = ["--web-origins", "https://app.example"];
    for flags in [&[][..], &origins] {
        let gateway = spawn_gateway(&upstream.url(), flags).await;
        for method in ["GET", "PUT", "HEAD", "DELETE", "PATCH", "OPTIONS"] {
            for path in [CREATE, "/grpc.health.v1.Health/Check", "/none"] {
                let method = method.parse().expect("a method");
                let body = frame(0, &create(1).encode_to_vec());
                let seen = send(&gateway, method, path, &[], body).await;
                assert_eq!(
                    (seen.http, seen.head["allow"].as_bytes()),
                    (405, &b"POST"[..])
                );
            }
        }
        gateway.drain().await;
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "a table")]
async fn c2_c3_c8_messages_are_as_many_as_large_and_as_packed_as_they_may_be() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    let one = frame(0, &create(1).encode_to_vec());
    let large = create(5 << 20).encode_to_vec();
    let health = frame(0, &[]);
    let fields = CreateRunRequest {
        run: Some(RunSpec {
            tools: vec![Tool::default(); 30_000],
            ..RunSpec::default()
        }),
        ..create(1)
    };
    let stream = "/runsgateway.v1.RunService/StreamCreateRun";
    let check = "/grpc.health.v1.Health/Check";
    let (internal, exhausted) = (
        (Code::Internal, "MALFORMED_REQUEST"),
        (Code::ResourceExhausted, "REQUEST_TOO_LARGE"),
    );
    let unsupported = (Code::Unimplemented, "UNSUPPORTED");
    let gz = ("grpc-encoding", "gzip");
    let none = ("grpc-encoding", "identity");
    let rows = [
        ("two", CREATE, none, [&*one, &one].concat(), internal),
        (
            "two of a stream's",
            stream,
            none,
            [&*one, &one].concat(),
            internal,
        ),
        (
            "two checks",
            check,
            none,
            [&*health, &health].concat(),
            internal,
        ),
        ("none", CREATE, none, vec![], internal),
        (
            "one and a half",
            CREATE,
            none,
            [&*one, &one[..9]].concat(),
            internal,
        ),
        (
            "one and a byte",
            CREATE,
            none,
            [&*one, &[0]].concat(),
            internal,
        ),
        ("half", CREATE, none, one[..9].to_vec(), internal),
        (
            "a flag that is none",
            CREATE,
            none,
            frame(7, &create(1).encode_to_vec()),
            internal,
        ),
        (
            "5 MiB",
            CREATE,
            none,
            frame(0, &large)[..100].to_vec(),
            exhausted,
        ),
        (
            "many fields",
            CREATE,
            none,
            frame(0, &fields.encode_to_vec()),
            exhausted,
        ),
        (
            "5 KiB for health",
            check,
            none,
            frame(0, &[0; 5 << 10]),
            exhausted,
        ),
        ("a bomb", CREATE, gz, frame(1, &gzip(&large)), exhausted),
        ("no gzip", CREATE, gz, frame(1, b"no gzip"), internal),
        (
            "half of a gzip",
            CREATE,
            gz,
            frame(1, &gzip(&one)[..20]),
            internal,
        ),
        (
            "two packed",
            CREATE,
            gz,
            [frame(1, &gzip(&one)), one.clone()].concat(),
            internal,
        ),
        (
            "packed without a word",
            CREATE,
            none,
            frame(1, &gzip(&one)),
            internal,
        ),
        (
            "zstd",
            CREATE,
            ("grpc-encoding", "zstd"),
            one.clone(),
            unsupported,
        ),
    ];
    for (what, path, encoding, body, (code, reason)) in rows {
        let seen = send(&gateway, Method::POST, path, &[encoding], body).await;
        assert_eq!(
            (seen.code(), &*seen.reason()),
            (code, reason),
            "{what}: {:?}",
            seen.status()
        );
        if what == "5 MiB" {
            assert!(
                seen.status()
                    .message()
                    .contains("4194304 bytes (--max-request-bytes)")
            );
        }
        if what == "zstd" {
            assert_eq!(seen.head["grpc-accept-encoding"], "identity,gzip");
        }
    }
    assert_eq!(upstream.requests().len(), 0);
    gateway.drain().await;
}

#[tokio::test]
async fn c8_packed_requests_are_taken_and_large_answers_packed_where_that_is_understood() {
    let large = format!(
        r#"{{"id":"run_1","thread_id":"thread_1","instructions":"{}"}}"#,
        "y".repeat(9_000)
    );
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    let gz = ("grpc-encoding", "gzip");
    let accepts = ("grpc-accept-encoding", "identity, deflate, gzip");
    let rows = [
        (&[gz, accepts][..], frame(1, &gzip(&get())), &*large, 1),
        (&[gz, accepts], frame(0, &get()), RUN, 0),
        (&[gz], frame(1, &gzip(&get())), &large, 0),
        (&[], frame(0, &get()), &large, 0),
    ];
    for (headers, body, run, packed) in rows {
        upstream.push(Answer::json(200, run.to_owned()));
        let seen = send(&gateway, Method::POST, GET, headers, body).await;
        assert_eq!(
            (seen.code(), seen.body[0]),
            (Code::Ok, packed),
            "{headers:?}"
        );
        let message = if packed == 1 {
            assert!(seen.body.len() < 1_000, "{}", seen.body.len());
            assert_eq!(seen.head["grpc-encoding"], "gzip");
            let mut message = Vec::new();
            GzDecoder::new(&seen.body[5..])
                .read_to_end(&mut message)
                .expect("gzip");
            message
        } else {
            seen.body[5..].to_vec()
        };
        assert_eq!(Run::decode(&*message).expect("a run").id, "run_1");
    }
    gateway.drain().await;
}

#[tokio::test]
async fn c4_a_watch_of_an_unknown_service_stays_open_and_a_known_one_sees_the_drain() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    let mut health = HealthClient::new(gateway.channel());
    let ask = |service: &str| HealthCheckRequest {
        service: service.to_owned(),
    };
    let check = health.check(ask("nowhere")).await.expect_err("unknown");
    assert_eq!(check.code(), Code::NotFound);
    let mut unknown = health
        .watch(ask("nowhere"))
        .await
        .expect("open")
        .into_inner();
    let mut known = health.watch(ask("")).await.expect("open").into_inner();
    let said = unknown
        .message()
        .await
        .expect("open")
        .expect("a status")
        .status();
    assert_eq!(said, ServingStatus::ServiceUnknown);
    let said = known
        .message()
        .await
        .expect("open")
        .expect("a status")
        .status();
    assert_eq!(said, ServingStatus::Serving);
    let draining = tokio::spawn(gateway.drain());
    let said = known
        .message()
        .await
        .expect("open")
        .expect("a status")
        .status();
    assert_eq!(said, ServingStatus::NotServing);
    // Nothing more is said of what is not there.
    assert_eq!(unknown.message().await.expect("a good end"), None);
    draining.await.expect("a drain");
}

/// The rows of reflection in one version: the two differ in nothing but their package.
macro_rules! reflection {
    ($name:ident, $version:ident) => {
        #[tokio::test]
        async fn $name() {
            use tonic_reflection::pb::$version::{
                ExtensionRequest, ServerReflectionRequest,
                server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest as Question,
                server_reflection_response::MessageResponse as Answer,
            };
            let upstream = Upstream::start().await;
            let gateway = spawn_gateway(&upstream.url(), &[]).await;
            let (sender, questions) = mpsc::channel(1);
            let mut client = ServerReflectionClient::new(gateway.channel());
            let answers = client.server_reflection_info(ReceiverStream::new(questions));
            let mut answers = answers.await.expect("a stream").into_inner();
            let symbol = |name: &str| Some(Question::FileContainingSymbol(name.to_owned()));
            let none = Question::FileContainingExtension(ExtensionRequest {
                containing_type: "runsgateway.v1.Run".to_owned(),
                extension_number: 1,
            });
            let all = |name: &str| Some(Question::AllExtensionNumbersOfType(name.to_owned()));
            let rows = [
                (symbol("no.such.Symbol"), Some(5)),
                (Some(Question::ListServices(String::new())), None),
                (symbol("runsgateway.v1.RUN_STATUS_QUEUED"), None),
                (symbol("runsgateway.v1.Run.id"), None),
                (symbol(".runsgateway.v1.Run"), None),
                (symbol("runsgateway.v1.RunEvent.payload"), None),
                (symbol("runsgateway.v1.RunStatus"), None),
                (symbol("runsgateway.v1.RunService.GetRun"), None),
                (symbol("runsgateway.v1"), Some(5)),
                (symbol(""), Some(5)),
                (
                    Some(Question::FileByFilename("none.proto".to_owned())),
                    Some(5),
                ),
                (None, Some(3)),
                (Some(none), Some(5)),
                (all("runsgateway.v1.Run"), None),
                (all("runsgateway.v1.None"), Some(5)),
            ];
            for (question, refused) in rows {
                let what = format!("{question:?}");
                let host = String::new();
                let question = ServerReflectionRequest {
                    host,
                    message_request: question,
                };
                sender.send(question).await.expect("an open stream");
                let answer = answers.message().await.expect("open").expect("an answer");
                let code = match answer.message_response.expect("one answer") {
                    Answer::ErrorResponse(error) => Some(error.error_code),
                    _ => None,
                };
                assert_eq!(code, refused, "{what}");
            }
            drop((sender, answers));
            gateway.drain().await;
        }
    };
}

reflection!(c5_c6_reflection_answers_each_question, v1);
reflection!(c5_c6_reflection_of_the_older_version_too, v1alpha);

#[tokio::test]
async fn c7_content_types_have_parameters_any_case_and_white_space() {
    let upstream = Upstream::answering(|_| Answer::json(200, RUN)).await;
    let origins = ["--web-origins", "https://app.example"];
    let gateway = spawn_gateway(&upstream.url(), &origins).await;
    let text = b"AAAAABEKCHRocmVhZF8xEgVydW5fMQ==".to_vec();
    for content_type in [
        "application/grpc-web+proto; charset=utf-8",
        "Application/GRPC-Web",
        "application/grpc-web ;x=y",
        "application/grpc; charset=utf-8",
        "APPLICATION/grpc+proto",
        "application/grpc-web-text; charset=utf-8",
    ] {
        let body = if content_type.contains("text") {
            text.clone()
        } else {
            frame(0, &get())
        };
        let headers = [("content-type", content_type)];
        let seen = send(&gateway, Method::POST, GET, &headers, body).await;
        assert_eq!(seen.http, 200, "{content_type}");
    }
    let headers = [("content-type", "application/grpc-webx")];
    let seen = send(&gateway, Method::POST, GET, &headers, frame(0, &get())).await;
    assert_eq!(seen.http, 415);
    gateway.drain().await;
}

#[tokio::test]
async fn c9_a_stream_has_the_metadata_of_its_upstreams_head() {
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    let events = "event: thread.run.completed\ndata: {\"id\":\"run_1\",\"thread_id\":\"thread_1\",\
                  \"status\":\"completed\"}\n\nevent: done\ndata: [DONE]\n\n";
    for answer in [Answer::sse([events]), Answer::json(200, RUN)] {
        let answer = answer
            .header("x-request-id", "req_1")
            .header("x-ratelimit-remaining-requests", "7")
            .header("set-cookie", "secret");
        upstream.push(answer);
        let request = StreamCreateRunRequest {
            thread_id: "thread_1".to_owned(),
            run: create(1).run,
            ..StreamCreateRunRequest::default()
        };
        let mut events = gateway
            .runs()
            .stream_create_run(request)
            .await
            .expect("a stream");
        let metadata = events.metadata();
        assert_eq!(metadata.get("x-request-id").expect("the id"), "req_1");
        assert_eq!(
            metadata
                .get("x-ratelimit-remaining-requests")
                .expect("the rest"),
            "7"
        );
        assert!(metadata.get("set-cookie").is_none());
        while events
            .get_mut()
            .message()
            .await
            .expect("a good end")
            .is_some()
        {}
    }
    // A watch polls: the headers are those of many answers, and none is its own.
    upstream.push(Answer::json(200, RUN).header("x-request-id", "req_2"));
    let request = WatchRunRequest {
        thread_id: "thread_1".to_owned(),
        run_id: "run_1".to_owned(),
        ..WatchRunRequest::default()
    };
    let watch = gateway.runs().watch_run(request).await.expect("a stream");
    assert!(watch.metadata().get("x-request-id").is_none());
    drop(watch);
    gateway.drain().await;
}

/// Statuses that libraries make have a reason, too.
#[tokio::test]
async fn every_status_has_a_reason() {
    type Row<'a> = (
        &'a str,
        &'a str,
        Vec<u8>,
        &'a [(&'a str, &'a str)],
        Code,
        &'a str,
    );
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&upstream.url(), &["--web-origins", "https://app.example"]).await;
    let create = "/runsgateway.v1.RunService/CreateRun";
    let check = "/grpc.health.v1.Health/Check";
    let unknown_field = [&[0x0a, 0xff][..], &[b'x'; 3]].concat();
    let wrong_type = vec![0x08, 1];
    let not_utf8 = vec![0x0a, 2, 0xff, 0xfe];
    let nowhere = HealthCheckRequest {
        service: "nowhere".to_owned(),
    };
    let rows: [Row<'_>; 11] = [
        (
            "no such method",
            "/runsgateway.v1.RunService/Nothing",
            frame(0, &get()),
            &[],
            Code::Unimplemented,
            "UNSUPPORTED",
        ),
        (
            "no such service",
            "/nowhere.V1/Nothing",
            frame(0, &get()),
            &[],
            Code::Unimplemented,
            "UNSUPPORTED",
        ),
        (
            "no path",
            "/",
            frame(0, &get()),
            &[],
            Code::Unimplemented,
            "UNSUPPORTED",
        ),
        (
            "a length beyond the end",
            create,
            frame(0, &unknown_field),
            &[],
            Code::Internal,
            "MALFORMED_REQUEST",
        ),
        (
            "a number for a text",
            create,
            frame(0, &wrong_type),
            &[],
            Code::Internal,
            "MALFORMED_REQUEST",
        ),
        (
            "no UTF-8",
            create,
            frame(0, &not_utf8),
            &[],
            Code::Internal,
            "MALFORMED_REQUEST",
        ),
        (
            "half a message",
            create,
            vec![0, 0, 0, 0, 9, 1],
            &[],
            Code::Internal,
            "MALFORMED_REQUEST",
        ),
        (
            "a stream's message",
            "/runsgateway.v1.RunService/ConverseRun",
            frame(0, &unknown_field),
            &[],
            Code::InvalidArgument,
            "INVALID_FIELD",
        ),
        (
            "no timeout",
            GET,
            frame(0, &get()),
            &[("grpc-timeout", "soon")],
            Code::InvalidArgument,
            "INVALID_FIELD",
        ),
        (
            "no such service's health",
            check,
            frame(0, &nowhere.encode_to_vec()),
            &[],
            Code::NotFound,
            "NOT_FOUND",
        ),
        (
            "a message of health that is too large",
            check,
            frame(0, &[0; 5000]),
            &[],
            Code::ResourceExhausted,
            "REQUEST_TOO_LARGE",
        ),
    ];
    for (row, path, body, headers, code, reason) in rows {
        for content_type in ["application/grpc", "application/grpc-web+proto"] {
            let headers: Vec<_> = headers
                .iter()
                .copied()
                .chain([("content-type", content_type)])
                .collect();
            let seen = send(&gateway, Method::POST, path, &headers, body.clone()).await;
            if content_type == "application/grpc" {
                assert_eq!((seen.code(), &*seen.reason()), (code, reason), "{row}");
            } else {
                let text = [
                    format!("{:?}", seen.head),
                    String::from_utf8_lossy(&seen.body).into_owned(),
                ]
                .concat();
                assert!(text.contains("grpc-status-details-bin"), "{row}: {text}");
            }
        }
    }
    gateway.drain().await;
    let gateway = spawn_gateway(&upstream.url(), &[]).await;
    for (method, headers) in [
        (Method::GET, &[][..]),
        (Method::POST, &[("content-type", "text/plain")]),
    ] {
        let seen = send(&gateway, method, GET, headers, frame(0, &get())).await;
        assert_eq!(seen.reason(), "INVALID_FIELD");
    }
    assert!(upstream.requests().is_empty());
    gateway.drain().await;
}
