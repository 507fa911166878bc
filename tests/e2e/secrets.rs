//! No key, no prompt and nothing of an upstream's body reaches a log, however much is logged, or a
//! metric, or a trace.

use runs_gateway::v1::{
    ConverseRunRequest, ConverseStart, RunEvent, RunSpec, StreamCreateRunRequest,
    StreamSubmitToolOutputsRequest, ToolOutput, ToolOutputs, WatchRunRequest, converse_run_request,
    run_service_client::RunServiceClient,
};
use tonic::{Request, Response, Status, Streaming, transport::Channel};

use crate::{
    call::Call,
    support::{
        program::Running,
        upstream::{Answer, Upstream},
    },
};

/// What must not be found.
const SECRETS: [&str; 7] = [
    "OWN-KEY",
    "CALLER-KEY",
    "PROMPT",
    "BODY-TEXT",
    "HEADER-VALUE",
    "COOKIE",
    "COLLECTOR-KEY",
];

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
    let refused = Call::rest(
        "POST",
        "/threads/t/runs",
        r#"{"assistant_id":"a","stream":true,"x-PROMPT":1}"#,
    );
    let error = r#"{"error":{"message":"BODY-TEXT","type":"invalid_request_error","param":"BODY-TEXT","code":null}}"#;
    let answers: [fn(&str) -> Answer; 10] = [
        |_| {
            Answer::json(200, r#"{"id":"run_1","instructions":"BODY-TEXT"}"#)
                .header("set-cookie", "COOKIE")
        },
        |error| Answer::json(400, error.to_owned()),
        |error| Answer::json(401, error.to_owned()),
        |error| Answer::json(429, error.to_owned()),
        |error| Answer::json(500, error.to_owned()),
        |_| Answer::json(200, "BODY-TEXT"),
        |_| {
            Answer::json(200, r#"{"id":"","x":"BODY-TEXT"}"#)
                .header("content-encoding", "BODY-TEXT")
        },
        |_| Answer::new(302).header("location", "http://BODY-TEXT/"),
        |_| Answer::raw("HTTP/1.1 200 OK\r\nBODY-TEXT\r\n\r\n").close(),
        |_| Answer::new(200).chunked().bytes("{\"BODY-TEXT").cut(),
    ];
    for flags in [&["--upstream-api-key", "OWN-KEY"][..], &[]] {
        let upstream = Upstream::start().await;
        let url = format!("{}/?key=HEADER-VALUE", upstream.url());
        let header = [
            "--log",
            "trace",
            "--max-retries",
            "0",
            "--upstream-header",
            "x-extra: HEADER-VALUE",
            "--upstream-url",
            &url,
        ];
        let collector = Upstream::answering(|_| Answer::new(200)).await;
        let environment = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.url()),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=COLLECTOR-KEY"),
        ];
        let program = Running::start_in(&[flags, &header].concat(), &environment).await;
        let metadata = [
            ("authorization", "Bearer CALLER-KEY"),
            ("cookie", "COOKIE"),
            ("idempotency-key", "HEADER-VALUE"),
        ];
        let (mut calls, mut told) = (0, Vec::new());
        for answer in &answers {
            for call in [&prompt, &outputs] {
                upstream.push(answer(error));
                told.extend(call.with(program.channel.clone(), &metadata).await.err());
                calls += 1;
            }
        }
        for call in Call::all() {
            upstream.push(answers[2](error));
            told.push(
                call.with(program.channel.clone(), &metadata)
                    .await
                    .expect_err("the key is not accepted"),
            );
            calls += 1;
        }
        calls += streams(&upstream, &program.channel, &metadata, &mut told).await;
        refused
            .with(program.channel.clone(), &metadata)
            .await
            .expect_err("`stream` is the gateway's");
        assert_eq!(upstream.requests().len(), calls, "every call went through");
        let (_, metrics) = program.ask_admin("/metrics").await;
        let (_, log) = program.stop("-TERM").await;
        let spans: Vec<_> = collector
            .requests()
            .iter()
            .map(|request| String::from_utf8_lossy(&request.body).into_owned())
            .collect();
        let spans = spans.join("\n");
        assert!(
            spans.contains("POST /threads/{thread_id}/runs")
                && metrics.contains("http_client_request_duration_seconds")
        );
        // It did log.
        assert!(
            log.contains("call ended")
                && log.contains("invalid_request_error")
                && log.contains("TRACE"),
            "{log}"
        );
        for secret in SECRETS {
            let said = [&*log, &*metrics, &*spans];
            let found: Vec<_> = said
                .into_iter()
                .flat_map(str::lines)
                .filter(|line| line.contains(secret))
                .take(3)
                .collect();
            assert!(found.is_empty(), "{secret} was said:\n{}", found.join("\n"));
        }
        // What the upstream says of an error is the caller's to know; nobody else's secret is.
        for status in told {
            let details = String::from_utf8_lossy(status.details()).into_owned();
            let text = format!("{status:?} {details}");
            assert!(
                SECRETS
                    .iter()
                    .all(|secret| *secret == "BODY-TEXT" || !text.contains(secret)),
                "{text}"
            );
        }
    }
}

/// Makes a call of each kind that streams, whose upstream says something, then fails in its own
/// way. How many requests that took.
async fn streams(
    upstream: &Upstream,
    channel: &Channel,
    metadata: &[(&'static str, &str)],
    told: &mut Vec<Status>,
) -> usize {
    let mut runs = RunServiceClient::new(channel.clone());
    let before = upstream.requests().len();
    let run = |status: &str| {
        format!(
            r#"{{"id":"run_1","thread_id":"t","status":"{status}","instructions":"BODY-TEXT"}}"#
        )
    };
    let event = |name: &str, data: &str| format!("event: {name}\ndata: {data}\n\n");
    let delta = event(
        "thread.message.delta",
        r#"{"id":"msg_1","delta":{"content":[{"type":"text","text":{"value":"BODY-TEXT"}}]}}"#,
    );
    let failed = event("error", r#"{"message":"BODY-TEXT","type":"server_error"}"#);
    let created = event("thread.run.created", &run("queued"));
    let spec = RunSpec {
        instructions: Some("PROMPT".into()),
        ..RunSpec::default()
    };
    let create = StreamCreateRunRequest {
        thread_id: "t".into(),
        run: Some(spec.clone()),
        ..StreamCreateRunRequest::default()
    };

    upstream.push(Answer::sse([
        created.clone(),
        delta.clone(),
        failed.clone(),
    ]));
    told.extend(
        ended(
            runs.stream_create_run(request(create.clone(), metadata))
                .await,
        )
        .await,
    );
    upstream.push(
        Answer::new(200)
            .header("content-type", "text/event-stream")
            .chunked()
            .bytes(delta)
            .bytes("data: BODY-TEXT")
            .cut(),
    );
    told.extend(ended(runs.stream_create_run(request(create, metadata)).await).await);
    let outputs = ToolOutputs {
        tool_outputs: vec![ToolOutput {
            tool_call_id: "c".into(),
            output: Some("PROMPT".into()),
            ..ToolOutput::default()
        }],
        ..ToolOutputs::default()
    };
    let submit = StreamSubmitToolOutputsRequest {
        thread_id: "t".into(),
        run_id: "run_1".into(),
        tool_outputs: Some(outputs),
        ..StreamSubmitToolOutputsRequest::default()
    };
    upstream.push(Answer::sse([failed.clone()]));
    told.extend(
        ended(
            runs.stream_submit_tool_outputs(request(submit, metadata))
                .await,
        )
        .await,
    );
    upstream.push(Answer::json(404, r#"{"error":{"message":"BODY-TEXT"}}"#));
    let watch = WatchRunRequest {
        thread_id: "t".into(),
        run_id: "run_1".into(),
        ..WatchRunRequest::default()
    };
    told.extend(ended(runs.watch_run(request(watch, metadata)).await).await);
    upstream.push(Answer::sse([created, failed]));
    let start = ConverseStart {
        thread_id: "t".into(),
        run: Some(spec),
        ..ConverseStart::default()
    };
    let first = ConverseRunRequest {
        message: Some(converse_run_request::Message::Start(start)),
    };
    told.extend(
        ended(
            runs.converse_run(request(tokio_stream::once(first), metadata))
                .await,
        )
        .await,
    );
    upstream.requests().len() - before
}

/// The status that a stream ends with, unless all is well.
async fn ended(stream: Result<Response<Streaming<RunEvent>>, Status>) -> Option<Status> {
    let mut events = match stream {
        Ok(events) => events.into_inner(),
        Err(status) => return Some(status),
    };
    loop {
        match events.message().await {
            Ok(Some(_)) => {}
            Ok(None) => return None,
            Err(status) => return Some(status),
        }
    }
}

fn request<M>(message: M, metadata: &[(&'static str, &str)]) -> Request<M> {
    let mut request = Request::new(message);
    for (name, value) in metadata {
        request
            .metadata_mut()
            .insert(*name, value.parse().expect("a value"));
    }
    request
}
