//! What stands in the log.

use serde_json::Value;

use crate::{
    all, events, get, runs, stream,
    support::{
        program::Running,
        upstream::{Answer, Upstream},
    },
    with,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

#[tokio::test]
async fn a_call_is_one_line_that_says_all_that_is_known_of_it() {
    let upstream = Upstream::start().await;
    let gateway = Running::start(&["--upstream-url", &upstream.url(), "--max-retries", "0"]).await;
    upstream.push(
        Answer::json(503, r#"{"error":{"message":"SECRET","code":"busy"}}"#)
            .header("x-request-id", "req_1"),
    );
    let context = format!("00-{TRACE}-00f067aa0ba902b7-01");
    runs(&gateway)
        .get_run(with(get(), &[("traceparent", &context)]))
        .await
        .expect_err("the upstream is busy");
    upstream.push(events());
    all(runs(&gateway).stream_create_run(stream()).await).await;
    let (_, log) = gateway.stop("-TERM").await;

    let lines = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let calls: Vec<Value> = lines
        .filter(|line| line["fields"]["message"] == "call ended")
        .map(|line| line["fields"].clone())
        .collect();
    assert_eq!(calls.len(), 2, "{log}");
    let (first, second) = (&calls[0], &calls[1]);
    assert_eq!(first["rpc.method"], "runsgateway.v1.RunService/GetRun");
    assert!(first.get("rpc.service").is_none());
    assert_eq!(first["code"], "UNAVAILABLE");
    assert_eq!(first["upstream_request_id"], "req_1");
    assert_eq!(first["trace_id"], TRACE);
    assert!(
        first["duration_ms"]
            .as_f64()
            .is_some_and(|duration| duration > 0.0)
    );
    assert!(
        first["error"]
            .as_str()
            .is_some_and(|error| error.contains("503")),
        "{first}"
    );
    assert_eq!(
        (&second["rpc.method"], &second["code"], &second["events"]),
        (
            &"runsgateway.v1.RunService/StreamCreateRun".into(),
            &"OK".into(),
            &5.into()
        )
    );
    assert!(
        second.get("error").is_none() && second.get("trace_id").is_none(),
        "what is not known is not there: {second}"
    );
    assert!(!log.contains("SECRET") && !log.contains("PROMPT"), "{log}");
}

#[tokio::test]
async fn lines_are_text_if_that_is_asked_for() {
    let upstream = Upstream::start().await;
    let gateway =
        Running::start(&["--upstream-url", &upstream.url(), "--log-format", "text"]).await;
    runs(&gateway)
        .get_run(runs_gateway::v1::GetRunRequest::default())
        .await
        .expect_err("no id");
    let (_, log) = gateway.stop("-TERM").await;
    let line = log
        .lines()
        .find(|line| line.contains("call ended"))
        .expect("a line");
    assert!(
        line.contains("rpc.method=\"runsgateway.v1.RunService/GetRun\" code=\"INVALID_ARGUMENT\"")
            && !line.contains('{'),
        "{line}"
    );
}

#[tokio::test]
async fn a_gateway_whose_log_nobody_reads_any_more_serves_and_drains() {
    let upstream = Upstream::start().await;
    let gateway = Running::start(&["--upstream-url", &upstream.url()])
        .await
        .unread()
        .await;
    for _ in 0..2 {
        let status = runs(&gateway)
            .get_run(runs_gateway::v1::GetRunRequest::default())
            .await
            .expect_err("no id");
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
    }
    let (status, _) = gateway.stop("-TERM").await;
    assert!(status.success(), "{status}");
}
