//! Troubles of the upstream's that an operator has to mend: rows O5 and O6, on the real program.

use std::{net::SocketAddr, time::Duration};

use runs_gateway::v1::{
    CreateRunRequest, GetRunRequest, RunSpec, StreamCreateRunRequest, WatchRunRequest,
    run_service_client::RunServiceClient,
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tonic::{Code, Request, Status, transport::Channel};

use crate::{
    certificates::Authority,
    front::front,
    operators::{HASH, write},
    reloads::{lines, metric},
    support::{
        program::Running,
        upstream::{Answer, Upstream},
    },
};

fn get() -> GetRunRequest {
    GetRunRequest {
        thread_id: "thread_1".into(),
        run_id: "run_1".into(),
    }
}

fn runs(program: &Running) -> RunServiceClient<Channel> {
    RunServiceClient::new(program.channel.clone())
}

/// A call, with a deadline that keeps the gateway from asking again and again.
pub(crate) async fn failed(program: &Running) -> Status {
    let mut request = Request::new(get());
    request.set_timeout(Duration::from_secs(10));
    runs(program).get_run(request).await.expect_err("no run")
}

/// What an operator sees of a call that failed: one warning that says so and what to do, which
/// counts; and what its caller is told.
async fn noted(program: &Running, row: &str, what: &str, words: &str, told: &Status) {
    let word = format!("\"what\":\"{what}\"");
    let said = lines(program, &word, 1).await;
    assert_eq!(said[0]["level"], "WARN", "{row}: {said:?}");
    let line = said[0].to_string();
    assert!(line.contains(words), "{row}: {line}");
    let name = format!("runs_gateway_troubles_total{{what=\"{what}\"}}");
    assert!(metric(program, &name).await >= 1.0, "{row}");
    let message = told.message();
    assert!(
        !message.contains("call again"),
        "calling again cannot help: {row}: {message}"
    );
    let all = program.log().join("\n");
    assert!(
        !all.contains("SECRET") && !message.contains("sk-SECRET"),
        "{row}: {all}"
    );
}

#[tokio::test]
async fn what_an_operator_has_to_mend_is_a_warning_with_words_and_a_metric() {
    let page = || {
        Answer::new(200)
            .header("content-type", "text/html")
            .bytes("<html>SECRET</html>")
    };
    let quota = r#"{"error":{"message":"SECRET","code":"insufficient_quota"}}"#;
    let bad_key = r#"{"error":{"message":"SECRET","code":"invalid_api_key"}}"#;
    let table: [(&str, Answer, Code, &str, &str); 11] = [
        (
            "401",
            Answer::json(401, bad_key),
            Code::Internal,
            "gateway_key_rejected",
            "--upstream-api-key-file",
        ),
        (
            "401, no words",
            Answer::new(401),
            Code::Internal,
            "gateway_key_rejected",
            "--upstream-api-key-file",
        ),
        (
            "403",
            Answer::json(403, bad_key),
            Code::Internal,
            "gateway_key_rejected",
            "--upstream-api-key-file",
        ),
        (
            "429 quota",
            Answer::json(429, quota),
            Code::ResourceExhausted,
            "quota_used_up",
            "quota",
        ),
        (
            "402",
            Answer::json(402, "{}"),
            Code::ResourceExhausted,
            "quota_used_up",
            "quota",
        ),
        (
            "a page",
            page(),
            Code::Internal,
            "upstream_unusable",
            "--upstream-url",
        ),
        (
            "no JSON",
            Answer::json(200, "nonsense"),
            Code::Internal,
            "upstream_unusable",
            "--upstream-url",
        ),
        (
            "another JSON",
            Answer::json(200, "[]"),
            Code::Internal,
            "upstream_unusable",
            "--upstream-url",
        ),
        (
            "404 page",
            Answer::new(404)
                .header("content-type", "text/html")
                .bytes("<html>"),
            Code::Unimplemented,
            "upstream_unusable",
            "--upstream-url",
        ),
        (
            "moved",
            Answer::new(301).header("location", "https://SECRET"),
            Code::Internal,
            "upstream_unusable",
            "--upstream-url",
        ),
        (
            "moved for ever",
            Answer::new(308).header("location", "https://SECRET"),
            Code::Internal,
            "upstream_unusable",
            "--upstream-url",
        ),
    ];
    for (row, answer, code, what, words) in table {
        let upstream = Upstream::start().await;
        let url = upstream.url();
        let flags = [
            "--upstream-url",
            &url,
            "--upstream-api-key",
            "sk-SECRET",
            "--max-retries",
            "0",
        ];
        let program = Running::start(&flags).await;
        upstream.push(answer);
        let told = failed(&program).await;
        assert_eq!(told.code(), code, "{row}: {told}");
        noted(&program, row, what, words, &told).await;
    }
}

/// A caller's own key is the caller's to mend, and so is what it asks for.
#[tokio::test]
async fn what_a_caller_has_to_mend_is_no_warning() {
    let words = r#"{"error":{"message":"no","code":"x"}}"#;
    for (status, code) in [
        (401, Code::Unauthenticated),
        (403, Code::PermissionDenied),
        (404, Code::NotFound),
        (400, Code::InvalidArgument),
    ] {
        let upstream = Upstream::start().await;
        let program = Running::start(&["--upstream-url", &upstream.url()]).await;
        upstream.push(Answer::json(status, words));
        let told = failed(&program).await;
        assert_eq!(told.code(), code, "{told}");
        let (_, log) = program.stop("-TERM").await;
        assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    }
}

#[tokio::test]
async fn a_trouble_of_every_call_is_a_line_a_second() {
    let upstream = Upstream::answering(|_| Answer::new(401)).await;
    let flags = ["--upstream-url", &upstream.url(), "--upstream-api-key", "k"];
    let program = Running::start(&flags).await;
    for _ in 0..100 {
        failed(&program).await;
    }
    let name = r#"runs_gateway_troubles_total{what="gateway_key_rejected"}"#;
    assert!((metric(&program, name).await - 100.0).abs() < 0.5);
    let said = lines(&program, "gateway_key_rejected", 1).await;
    assert!(said.len() <= 20, "{said:?}");
}

/// What servers say to HTTP at a port for TLS.
const NGINX: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n\
    <html><body><center>The plain HTTP request was sent to HTTPS port</center></body></html>";
const GO: &[u8] =
    b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";

/// A server without TLS: it answers what is no HTTP so, and hangs up.
async fn plain(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer).await;
        }
    });
    address
}

#[tokio::test]
async fn an_upstream_that_cannot_be_talked_to_is_told_with_its_cause_and_its_flag() {
    let (ours, stranger) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().expect("a folder");
    let ca = write(&folder, "ca", ours.pem());
    let upstream = Upstream::answering(|_| Answer::json(200, "{}")).await;
    let https = |address: SocketAddr| format!("https://localhost:{}", address.port());
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let nobody = free.local_addr().expect("bound");
    drop(free);
    let tls = front(&upstream, ours.server("localhost"), None).await;
    let table = [
        (
            "expired",
            https(front(&upstream, ours.expired_server("localhost"), None).await),
            "expired",
        ),
        (
            "not valid yet",
            https(front(&upstream, ours.future_server("localhost"), None).await),
            "clock",
        ),
        (
            "another CA",
            https(front(&upstream, stranger.server("localhost"), None).await),
            "--upstream-ca-file",
        ),
        (
            "another name",
            https(front(&upstream, ours.server("other.example"), None).await),
            "another name",
        ),
        (
            "https to what hangs up",
            https(plain(b"").await),
            "--upstream-url",
        ),
        (
            "https to a plain port",
            https(plain(b"HTTP/1.1 400 Bad Request\r\n\r\n").await),
            "does not speak TLS",
        ),
        (
            "http to a TLS port",
            format!("http://{tls}"),
            "--upstream-url",
        ),
        (
            "http to nginx's TLS port",
            format!("http://{}", plain(NGINX).await),
            "speaks TLS",
        ),
        (
            "http to Go's TLS port",
            format!("http://{}", plain(GO).await),
            "speaks TLS",
        ),
        ("nobody there", format!("http://{nobody}"), "--upstream-url"),
        (
            "no such name",
            "http://no.such.name.invalid".to_owned(),
            "--upstream-url",
        ),
    ];
    for (row, url, words) in table {
        let mut flags = vec!["--upstream-url", &url, "--max-retries", "0"];
        if url.starts_with("https") {
            flags.extend(["--upstream-ca-file", &ca]);
        }
        let program = Running::start(&flags).await;
        let told = failed(&program).await;
        assert_eq!(told.code(), Code::Unavailable, "{row}: {told}");
        let word = "\"what\":\"upstream_unreachable\"";
        let said = lines(&program, word, 1).await;
        let line = said[0].to_string();
        assert_eq!(said[0]["level"], "WARN", "{row}: {line}");
        assert!(line.contains(words), "{row}: {line}");
        assert!(!line.contains("InvalidContentType"), "{row}: {line}");
        // Nobody there, or no such name, may pass; the rest will not by itself.
        let passes = matches!(
            row,
            "nobody there" | "no such name" | "https to what hangs up"
        );
        let message = told.message();
        assert!(
            passes || !message.contains("call again"),
            "{row}: {message}"
        );
        assert!(
            row != "https to what hangs up" || message.contains("speaks no TLS"),
            "{row}: {message}"
        );
        assert!(
            !message.contains("other.example") && !message.contains("127.0.0.1"),
            "{message}"
        );
    }
}

/// The line of a call, once it is there.
async fn call_line(program: &Running, method: &str) -> Value {
    let word = format!("\"rpc.method\":\"runsgateway.v1.RunService/{method}\"");
    lines(program, &word, 1).await[0]["fields"].clone()
}

/// O5: thread, run and caller are in the line of a call, if that was asked for.
#[tokio::test]
async fn a_calls_line_has_thread_run_and_caller_by_flag() {
    let folder = tempfile::tempdir().expect("a folder");
    let tokens = write(&folder, "tokens", format!("{HASH} the batch job"));
    let run = r#"{"id":"run_9","thread_id":"thread_1","status":"completed"}"#;
    let missing = r#"{"error":{"message":"no run"}}"#;
    let table: [(&str, Option<&str>); 5] = [
        ("GetRun", Some("run_1")),
        ("CreateRun", Some("run_9")),
        ("StreamCreateRun", Some("run_9")),
        ("WatchRun", Some("run_1")),
        ("ListRuns", None),
    ];
    for on in [true, false] {
        for (method, run_id) in table {
            let upstream = Upstream::start().await;
            let url = upstream.url();
            let mut flags = vec![
                "--upstream-url",
                &url,
                "--upstream-api-key",
                "k",
                "--tokens-file",
                &tokens,
                "--max-retries",
                "0",
            ];
            if on {
                flags.push("--log-ids");
            }
            let program = Running::start(&flags).await;
            let mut runs = runs(&program);
            let spec = Some(RunSpec {
                assistant_id: "a".into(),
                ..RunSpec::default()
            });
            let thread_id = "thread_1".to_owned();
            match method {
                "GetRun" => {
                    upstream.push(Answer::json(404, missing));
                    let _ = runs.get_run(known(get())).await;
                }
                "CreateRun" => {
                    upstream.push(Answer::json(200, run));
                    let request = CreateRunRequest {
                        thread_id,
                        run: spec,
                        ..CreateRunRequest::default()
                    };
                    runs.create_run(known(request)).await.expect("a run");
                }
                "StreamCreateRun" => {
                    let event = format!("event: thread.run.completed\ndata: {run}\n\n");
                    upstream.push(Answer::sse([
                        event,
                        "event: done\ndata: [DONE]\n\n".to_owned(),
                    ]));
                    let request = StreamCreateRunRequest {
                        thread_id,
                        run: spec,
                        ..StreamCreateRunRequest::default()
                    };
                    let stream = runs
                        .stream_create_run(known(request))
                        .await
                        .expect("a stream");
                    let mut stream = stream.into_inner();
                    while stream.message().await.expect("events").is_some() {}
                }
                "WatchRun" => {
                    upstream.push(Answer::json(404, missing));
                    let request = WatchRunRequest {
                        thread_id,
                        run_id: "run_1".into(),
                        ..WatchRunRequest::default()
                    };
                    runs.watch_run(known(request)).await.expect_err("no run");
                }
                _ => {
                    upstream.push(Answer::json(200, r#"{"object":"list","data":[]}"#));
                    let request = runs_gateway::v1::ListRunsRequest {
                        thread_id,
                        ..Default::default()
                    };
                    runs.list_runs(known(request)).await.expect("a list");
                }
            }
            let line = call_line(&program, method).await;
            let told = |name: &str| line.get(name).and_then(Value::as_str).map(str::to_owned);
            let expected = |word: Option<&str>| word.filter(|_| on).map(str::to_owned);
            assert_eq!(
                told("thread_id"),
                expected(Some("thread_1")),
                "{method}: {line}"
            );
            assert_eq!(told("run_id"), expected(run_id), "{method}: {line}");
            assert_eq!(
                told("caller"),
                expected(Some("the batch job")),
                "{method}: {line}"
            );
            drop(program);
        }
    }
}

/// A call of a caller that is known by its token.
fn known<M>(message: M) -> Request<M> {
    let mut request = Request::new(message);
    let token = "Bearer secret".parse().expect("a value");
    request.metadata_mut().insert("authorization", token);
    request
}

#[tokio::test]
async fn what_an_event_says_of_the_gateways_key_is_a_warning_too() {
    for (code, what, words) in [
        ("401", "gateway_key_rejected", "--upstream-api-key-file"),
        (
            "invalid_api_key",
            "gateway_key_rejected",
            "--upstream-api-key-file",
        ),
        ("insufficient_quota", "quota_used_up", "quota"),
    ] {
        let upstream = Upstream::start().await;
        let url = upstream.url();
        let flags = ["--upstream-url", &url, "--upstream-api-key", "sk-SECRET"];
        let program = Running::start(&flags).await;
        let error = format!(r#"{{"error":{{"message":"SECRET","code":"{code}"}}}}"#);
        upstream.push(Answer::sse([format!("event: error\ndata: {error}\n\n")]));
        let request = StreamCreateRunRequest {
            thread_id: "thread_1".into(),
            run: Some(RunSpec::default()),
            ..StreamCreateRunRequest::default()
        };
        let stream = runs(&program).stream_create_run(request).await;
        let stream = stream.expect("a stream");
        let told = stream.into_inner().message().await.expect_err("an error");
        noted(&program, code, what, words, &told).await;
    }
}
