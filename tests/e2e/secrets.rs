//! No key, no prompt and nothing of an upstream's body reaches a log, however much is logged, or a metric, or a trace.

use crate::{
    call::Call,
    support::{
        program::Running,
        upstream::{Answer, Upstream},
    },
};

/// What must not be found.
const SECRETS: [&str; 7] = ["OWN-KEY", "CALLER-KEY", "PROMPT", "BODY-TEXT", "HEADER-VALUE", "COOKIE", "COLLECTOR-KEY"];

#[tokio::test]
async fn no_secret_is_logged_at_any_level_or_counted_or_traced() {
    let prompt = Call::rest(
        "POST",
        "/threads/t/runs",
        r#"{"assistant_id":"a","instructions":"PROMPT","metadata":{"k":"PROMPT"},"additional_messages":[{"role":"user","content":"PROMPT"}]}"#,
    );
    let outputs = Call::rest(
        "POST",
        "/threads/t/runs/r/submit_tool_outputs",
        r#"{"tool_outputs":[{"tool_call_id":"c","output":"PROMPT"}]}"#,
    );
    let refused = Call::rest("POST", "/threads/t/runs", r#"{"assistant_id":"a","stream":true,"x-PROMPT":1}"#);
    let error = r#"{"error":{"message":"BODY-TEXT","type":"invalid_request_error","param":"BODY-TEXT","code":null}}"#;
    let answers: [fn(&str) -> Answer; 10] = [
        |_| Answer::json(200, r#"{"id":"run_1","instructions":"BODY-TEXT"}"#).header("set-cookie", "COOKIE"),
        |error| Answer::json(400, error.to_owned()),
        |error| Answer::json(401, error.to_owned()),
        |error| Answer::json(429, error.to_owned()),
        |error| Answer::json(500, error.to_owned()),
        |_| Answer::json(200, "BODY-TEXT"),
        |_| Answer::json(200, r#"{"id":"","x":"BODY-TEXT"}"#).header("content-encoding", "BODY-TEXT"),
        |_| Answer::new(302).header("location", "http://BODY-TEXT/"),
        |_| Answer::raw("HTTP/1.1 200 OK\r\nBODY-TEXT\r\n\r\n").close(),
        |_| Answer::new(200).chunked().bytes("{\"BODY-TEXT").cut(),
    ];
    for flags in [&["--upstream-api-key", "OWN-KEY"][..], &[]] {
        let upstream = Upstream::start().await;
        let url = format!("{}/?key=HEADER-VALUE", upstream.url());
        let header =
            ["--log", "trace", "--max-retries", "0", "--upstream-header", "x-extra: HEADER-VALUE", "--upstream-url", &url];
        let collector = Upstream::answering(|_| Answer::new(200)).await;
        let environment =
            [("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.url()), ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=COLLECTOR-KEY")];
        let program = Running::start_in(&[flags, &header].concat(), &environment).await;
        let metadata = [("authorization", "Bearer CALLER-KEY"), ("cookie", "COOKIE"), ("idempotency-key", "HEADER-VALUE")];
        let mut calls = 0;
        for answer in &answers {
            for call in [&prompt, &outputs] {
                upstream.push(answer(error));
                let _ = call.with(program.channel.clone(), &metadata).await;
                calls += 1;
            }
        }
        refused.with(program.channel.clone(), &metadata).await.expect_err("`stream` is the gateway's");
        assert_eq!(upstream.requests().len(), calls, "every call went through");
        let (_, metrics) = program.ask_admin("/metrics").await;
        let (_, log) = program.stop("-TERM").await;
        let spans: Vec<_> =
            collector.requests().iter().map(|request| String::from_utf8_lossy(&request.body).into_owned()).collect();
        let spans = spans.join("\n");
        assert!(spans.contains("POST /threads/{thread_id}/runs") && metrics.contains("http_client_request_duration_seconds"));
        // It did log.
        assert!(log.contains("call ended") && log.contains("invalid_request_error") && log.contains("TRACE"), "{log}");
        for secret in SECRETS {
            let said = [&*log, &*metrics, &*spans];
            let found: Vec<_> = said.into_iter().flat_map(str::lines).filter(|line| line.contains(secret)).take(3).collect();
            assert!(found.is_empty(), "{secret} was said:\n{}", found.join("\n"));
        }
    }
}
