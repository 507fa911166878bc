//! What a scraper sees.

use std::{collections::HashMap, io::Write as _, sync::Arc};

use http::HeaderMap;
use runs_gateway::{
    telemetry::Telemetry,
    v1::{GetRunRequest, RunEvent, RunEventType, StreamCreateRunRequest, StreamOptions},
};
use tokio::sync::Notify;

use crate::{
    all, create, event, events, failed, get, run, runs, stream,
    support::{
        program::Running,
        upstream::{Answer, Upstream},
    },
    watch,
};

/// Samples by name and labels, as they stand in the text.
struct Scrape(HashMap<String, f64>);

impl Scrape {
    async fn of(gateway: &Running) -> Self {
        let (status, text) = gateway.ask_admin("/metrics").await;
        assert_eq!(status, 200);
        Self::read(&text)
    }

    fn read(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ').expect("a sample");
            (name.to_owned(), value.parse().expect("a number"))
        };
        Self(samples.map(sample).collect())
    }

    /// The value of a sample; 0 if it is not there.
    fn get(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    fn expect(&self, expected: &[(&str, f64)]) {
        for (name, value) in expected {
            assert!(
                (self.get(name) - value).abs() < 1e-9,
                "{name} is not {value} in {:#?}",
                self.0
            );
        }
    }
}

#[tokio::test]
async fn calls_requests_retries_events_and_runs_are_counted() {
    let upstream = Upstream::start().await;
    let gateway =
        Running::start(&["--upstream-url", &upstream.url(), "--retry-pause", "1ms"]).await;
    let mut client = runs(&gateway);

    upstream.push(Answer::json(500, "{}"));
    upstream.push(Answer::json(200, failed()));
    client
        .get_run(get())
        .await
        .expect("answered at the second attempt");
    upstream.push(Answer::json(200, failed()));
    client.get_run(get()).await.expect("the same run once more");
    let old = r#"{"id":"run_old","object":"thread.run","thread_id":"thread_1","status":"expired","created_at":1700000000}"#;
    upstream.push(Answer::json(200, old));
    let get_old = GetRunRequest {
        run_id: "run_old".into(),
        ..get()
    };
    client
        .get_run(get_old)
        .await
        .expect("a run that expired before the gateway began");
    upstream.push(Answer::json(404, r#"{"error":{"message":"No run"}}"#));
    client.get_run(get()).await.expect_err("it is not there");
    upstream.push(Answer::cut_before_answer());
    client
        .create_run(create())
        .await
        .expect_err("the outcome is not known");
    upstream.push(events());
    assert_eq!(all(client.stream_create_run(stream()).await).await.len(), 5);
    client
        .get_run(runs_gateway::v1::GetRunRequest::default())
        .await
        .expect_err("no id");
    let method = |method: &str| {
        tonic::codegen::http::uri::PathAndQuery::try_from(format!("/x.Y/{method}")).expect("a path")
    };
    let mut unknown = tonic::client::Grpc::new(gateway.channel.clone());
    for name in ["Z1", "Z2"] {
        unknown.ready().await.expect("a connection");
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        unknown
            .unary(tonic::Request::new(()), method(name), codec)
            .await
            .expect_err("not served");
    }

    let scrape = Scrape::of(&gateway).await;
    let (get, post) = (
        "/threads/{thread_id}/runs/{run_id}",
        "/threads/{thread_id}/runs",
    );
    let calls = |method, code| {
        let own = ["UNKNOWN", "UNIMPLEMENTED"].contains(&code);
        let error = if own { code } else { "" };
        let service = "runsgateway.v1.RunService/";
        let service = if method == "_OTHER" { "" } else { service };
        format!(
            r#"rpc_server_call_duration_seconds_count{{error_type="{error}",rpc_method="{service}{method}",rpc_status_code="{code}",rpc_system_name="grpc"}}"#
        )
    };
    let requests = |method, route, status, error| {
        format!(
            r#"http_client_request_duration_seconds_count{{error_type="{error}",http_request_method="{method}",http_response_status_code="{status}",url_template="{route}"}}"#
        )
    };
    scrape.expect(&[
        (&calls("GetRun", "OK"), 3.0),
        (&calls("GetRun", "NOT_FOUND"), 1.0),
        (&calls("GetRun", "INVALID_ARGUMENT"), 1.0),
        (&calls("CreateRun", "UNKNOWN"), 1.0),
        (&calls("StreamCreateRun", "OK"), 1.0),
        (&calls("_OTHER", "UNIMPLEMENTED"), 2.0),
        (&requests("GET", get, "500", ""), 1.0),
        (&requests("GET", get, "200", ""), 3.0),
        (&requests("GET", get, "404", ""), 1.0),
        (&requests("POST", post, "", "lost"), 1.0),
        (&requests("POST", post, "200", ""), 1.0),
        (&format!(r#"runs_gateway_retries_total{{url_template="{get}"}}"#), 1.0),
        (r#"runs_gateway_events_total{type="thread_message_delta"}"#, 2.0),
        (r#"runs_gateway_events_total{type="done"}"#, 1.0),
        (r#"runs_gateway_time_to_first_event_seconds_count{rpc_method="runsgateway.v1.RunService/StreamCreateRun"}"#, 1.0),
        (r#"runs_gateway_runs_ended_total{error_code="",status="expired"}"#, 0.0),
        // It was seen three times.
        (r#"runs_gateway_runs_ended_total{error_code="server_error",status="failed"}"#, 1.0),
        (
            r#"gen_ai_client_inference_usage_input_tokens_total{gen_ai_operation_name="invoke_agent",gen_ai_provider_name="unknown",gen_ai_request_model="gpt-4o",gen_ai_token_modality="unknown"}"#,
            30.0,
        ),
        (
            r#"gen_ai_client_inference_usage_output_tokens_total{gen_ai_operation_name="invoke_agent",gen_ai_provider_name="unknown",gen_ai_request_model="gpt-4o",gen_ai_token_modality="unknown"}"#,
            5.0,
        ),
        ("http_client_active_requests", 0.0),
        ("runs_gateway_upstream_streams_cut_total", 0.0),
        (r#"runs_gateway_build_info{version="0.1.0"}"#, 1.0),
    ]);
    assert!(scrape.get("process_resident_memory_bytes") > 0.0);
    gateway.stop("-TERM").await;
}

#[tokio::test]
async fn what_is_open_is_there_as_long_as_it_is_open() {
    let upstream = Upstream::start().await;
    let gateway = Running::start(&[
        "--upstream-url",
        &upstream.url(),
        "--poll-floor",
        "1h",
        "--poll-ceiling",
        "1h",
    ])
    .await;
    let answered = Arc::new(Notify::new());
    let mut watchers = Vec::new();
    upstream.push(Answer::json(200, run("in_progress", "")));
    for _ in 0..2 {
        if watchers.len() == 1 {
            upstream.push(Answer::json(200, run("in_progress", "")));
        }
        let mut events = runs(&gateway)
            .watch_run(watch())
            .await
            .expect("a stream")
            .into_inner();
        events.message().await.expect("a state").expect("an event");
        watchers.push(events);
    }
    upstream.push(
        Answer::new(200)
            .header("content-type", "text/event-stream")
            .chunked()
            .wait(&answered),
    );
    let stream = runs(&gateway)
        .stream_create_run(stream())
        .await
        .expect("a stream");
    let active = |method| {
        format!(r#"runs_gateway_active_calls{{rpc_method="runsgateway.v1.RunService/{method}"}}"#)
    };
    Scrape::of(&gateway).await.expect(&[
        (&active("WatchRun"), 2.0),
        (&active("StreamCreateRun"), 1.0),
        ("runs_gateway_watchers", 2.0),
        ("runs_gateway_pollers", 1.0),
        ("http_client_active_requests", 1.0),
        ("runs_gateway_connections", 1.0),
    ]);
    drop((watchers, stream));
    answered.notify_one();
    let (status, log) = gateway.stop("-TERM").await;
    assert!(status.success(), "{log}");
}

/// Asks for a stream that is recorded, of a gateway with these flags, and gives its events and what
/// is counted after it.
async fn recorded(flags: &[&str]) -> (Vec<RunEvent>, Scrape) {
    let upstream = Upstream::start().await;
    let url = upstream.url();
    let gateway = Running::start(&[&["--upstream-url", &*url], flags].concat()).await;
    upstream.push(events());
    let request = StreamCreateRunRequest {
        options: Some(StreamOptions {
            resumable: true,
            ..StreamOptions::default()
        }),
        ..stream()
    };
    let heard = all(runs(&gateway).stream_create_run(request).await).await;
    let scrape = Scrape::of(&gateway).await;
    gateway.stop("-TERM").await;
    (heard, scrape)
}

#[tokio::test]
async fn what_is_recorded_delivered_held_and_trimmed_is_counted() {
    let (heard, scrape) = recorded(&["--event-log-run-entries", "2"]).await;
    let delivered = f64::from(u32::try_from(heard.len()).expect("few"));
    scrape.expect(&[
        ("runs_gateway_event_log_appended_total", 4.0),
        ("runs_gateway_event_log_delivered_total", delivered),
        // Two stay; the fifth entry is that of the epoch.
        ("runs_gateway_event_log_trimmed_total", 3.0),
        ("runs_gateway_event_log_unrecorded_streams_total", 0.0),
        ("runs_gateway_event_log_failures_total", 0.0),
        ("runs_gateway_event_log_takeovers_total", 0.0),
    ]);
    assert!(scrape.get("runs_gateway_event_log_bytes") > 0.0);
    assert!(scrape.get("runs_gateway_event_log_append_seconds_count") > 0.0);
}

#[tokio::test]
async fn a_stream_that_cannot_be_recorded_is_whole_and_counted() {
    let mut secret = tempfile::NamedTempFile::new().expect("a file");
    secret.write_all(&[b'x'; 32]).expect("written");
    let (heard, scrape) = recorded(&[
        "--event-log",
        // Nothing listens there.
        "redis://127.0.0.1:1",
        "--event-log-key-file",
        secret.path().to_str().expect("a path"),
        "--event-log-timeout",
        "100ms",
    ])
    .await;
    assert_eq!(heard.len(), 4);
    assert!(heard.iter().all(|event| event.position.is_empty()));
    scrape.expect(&[
        ("runs_gateway_event_log_appended_total", 0.0),
        ("runs_gateway_event_log_unrecorded_streams_total", 1.0),
        ("runs_gateway_event_log_failures_total", 1.0),
        ("runs_gateway_event_log_bytes", 0.0),
    ]);
}

#[tokio::test]
async fn a_cut_stream_and_a_shed_call_are_counted() {
    let upstream = Upstream::start().await;
    let flags = [
        "--upstream-url",
        &upstream.url(),
        "--max-live-streams",
        "1",
        "--poll-floor",
        "1ms",
    ];
    let gateway = Running::start(&flags).await;
    let event = event("thread.run.created", &run("queued", ""));
    let cut = Arc::new(Notify::new());
    upstream.push(
        Answer::new(200)
            .header("content-type", "text/event-stream")
            .chunked()
            .bytes(event)
            .wait(&cut)
            .cut(),
    );
    let live = runs(&gateway).stream_create_run(stream()).await;
    runs(&gateway)
        .stream_create_run(stream())
        .await
        .expect_err("there may be one");
    upstream.push(Answer::json(200, run("completed", "")));
    // Its steps and its messages.
    for _ in 0..2 {
        upstream.push(Answer::json(200, r#"{"data":[]}"#));
    }
    cut.notify_one();
    assert_eq!(all(live).await.len(), 2);
    Scrape::of(&gateway).await.expect(&[
        ("runs_gateway_upstream_streams_cut_total", 1.0),
        (r#"runs_gateway_shed_total{what="live streams"}"#, 1.0),
        (
            r#"runs_gateway_runs_ended_total{error_code="",status="completed"}"#,
            1.0,
        ),
        ("runs_gateway_watchers", 0.0),
        ("runs_gateway_pollers", 0.0),
    ]);
    gateway.stop("-TERM").await;
}

#[tokio::test]
async fn a_run_whose_upstream_does_not_stream_has_no_stream_that_is_cut() {
    let upstream = Upstream::start().await;
    let gateway = Running::start(&["--upstream-url", &upstream.url(), "--poll-floor", "1ms"]).await;
    let cases = [
        ("the run alone", Answer::json(200, run("queued", "")), 0.0),
        (
            "a stream without its end",
            Answer::sse([event("thread.run.created", &run("queued", ""))]),
            1.0,
        ),
    ];
    for (what, answer, cut) in cases {
        upstream.push(answer);
        upstream.push(Answer::json(200, run("completed", "")));
        // Its steps and its messages.
        for _ in 0..2 {
            upstream.push(Answer::json(200, r#"{"data":[]}"#));
        }
        let events = all(runs(&gateway).stream_create_run(stream()).await).await;
        assert_eq!(
            events.last().map(RunEvent::r#type),
            Some(RunEventType::ThreadRunCompleted),
            "{what}"
        );
        Scrape::of(&gateway)
            .await
            .expect(&[("runs_gateway_upstream_streams_cut_total", cut)]);
    }
    gateway.stop("-TERM").await;
}

#[test]
fn a_heartbeat_is_counted_but_is_no_first_event() {
    let telemetry = Telemetry::default();
    let call = telemetry.call("/runsgateway.v1.RunService/WatchRun", &HeaderMap::new());
    let kinds = [
        (RunEventType::Heartbeat, 0.0),
        (RunEventType::ThreadRunCreated, 1.0),
        (RunEventType::Heartbeat, 1.0),
        (RunEventType::ThreadRunCompleted, 1.0),
    ];
    for (kind, first) in kinds {
        call.sent(kind, None);
        Scrape::read(&telemetry.metrics().render()).expect(&[(
            r#"runs_gateway_time_to_first_event_seconds_count{rpc_method="runsgateway.v1.RunService/WatchRun"}"#,
            first,
        )]);
    }
    Scrape::read(&telemetry.metrics().render())
        .expect(&[(r#"runs_gateway_events_total{type="heartbeat"}"#, 2.0)]);
}
