//! What the gateway tells of itself, by whoever listens: a scraper, a collector of traces, a reader
//! of logs, a probe.

#[path = "../support/mod.rs"]
mod support;

mod admin;
mod conventions;
mod logs;
mod metrics;
mod traces;

use runs_gateway::v1::{
    CreateRunRequest, GetRunRequest, RunEvent, RunSpec, StreamCreateRunRequest, WatchRunRequest,
    run_service_client::RunServiceClient,
};
use support::{program::Running, upstream::Answer};
use tokio_stream::StreamExt as _;
use tonic::{Request, Status, transport::Channel};

fn runs(gateway: &Running) -> RunServiceClient<Channel> {
    RunServiceClient::new(gateway.channel.clone())
}

fn get() -> GetRunRequest {
    GetRunRequest {
        thread_id: "thread_1".into(),
        run_id: "run_1".into(),
    }
}

fn watch() -> WatchRunRequest {
    WatchRunRequest {
        thread_id: "thread_1".into(),
        run_id: "run_1".into(),
        ..WatchRunRequest::default()
    }
}

fn spec() -> RunSpec {
    RunSpec {
        assistant_id: "asst_1".into(),
        instructions: Some("PROMPT".into()),
        ..RunSpec::default()
    }
}

fn create() -> CreateRunRequest {
    CreateRunRequest {
        thread_id: "thread_1".into(),
        run: Some(spec()),
        ..CreateRunRequest::default()
    }
}

fn stream() -> StreamCreateRunRequest {
    StreamCreateRunRequest {
        thread_id: "thread_1".into(),
        run: Some(spec()),
        ..StreamCreateRunRequest::default()
    }
}

/// A run as JSON.
fn run(status: &str, more: &str) -> String {
    let ids = r#""id":"run_1","object":"thread.run","thread_id":"thread_1","assistant_id":"asst_1","model":"gpt-4o""#;
    format!(r#"{{{ids},"status":"{status}"{more}}}"#)
}

/// A run that failed after it used tokens.
fn failed() -> String {
    let error = r#","last_error":{"code":"server_error","message":"SECRET"}"#;
    run(
        "failed",
        &format!(
            r#"{error},"usage":{{"prompt_tokens":30,"completion_tokens":5,"total_tokens":35}}"#
        ),
    )
}

/// An event of a stream.
fn event(name: &str, data: &str) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

/// An event stream of a run that is created, says something and fails.
fn events() -> Answer {
    let delta = r#"{"id":"msg_1","object":"thread.message.delta","delta":{"content":[]}}"#;
    Answer::sse([
        event("thread.run.created", &run("queued", "")),
        event("thread.message.delta", delta),
        event("thread.message.delta", delta),
        event("thread.run.failed", &failed()),
        event("done", "[DONE]"),
    ])
}

async fn all(stream: Result<tonic::Response<tonic::Streaming<RunEvent>>, Status>) -> Vec<RunEvent> {
    stream
        .expect("a stream")
        .into_inner()
        .map(|event| event.expect("an event"))
        .collect()
        .await
}

/// A request with metadata.
fn with<M>(message: M, metadata: &[(&'static str, &str)]) -> Request<M> {
    let mut request = Request::new(message);
    for (name, value) in metadata {
        request
            .metadata_mut()
            .insert(*name, value.parse().expect("a value"));
    }
    request
}
