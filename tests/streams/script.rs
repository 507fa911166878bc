//! What upstreams say of runs, and what a caller heard of it.
//!
//! All runs here are `run_1` on `thread_1`, unless a test needs more of them.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use runs_gateway::{
    json,
    v1::{
        CancelRunRequest, Run, RunEvent, RunEventType, RunSpec, StreamCreateRunRequest,
        StreamOptions, WaitRunRequest, WatchRunRequest, run_event::Payload,
    },
};
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;

use crate::support::upstream::{Answer, Recorded};

/// Polling fast enough for a test, and no long waits.
pub(crate) const FAST: [&str; 6] = [
    "--poll-floor",
    "2ms",
    "--poll-ceiling",
    "5ms",
    "--done-timeout",
    "100ms",
];

/// Polling only when somebody asks for it.
pub(crate) const NEVER: [&str; 4] = ["--poll-floor", "1h", "--poll-ceiling", "1h"];

/// A run in a status, as JSON.
pub(crate) fn run(status: &str) -> String {
    format!(
        r#"{{"id":"run_1","object":"thread.run","thread_id":"thread_1","status":"{status}","model":"m"}}"#
    )
}

/// A step as JSON; one that wrote a message if there is an id of one.
pub(crate) fn step(id: &str, status: &str, message: &str) -> String {
    let details = if message.is_empty() {
        r#"{"type":"tool_calls","tool_calls":[]}"#.to_owned()
    } else {
        format!(r#"{{"type":"message_creation","message_creation":{{"message_id":"{message}"}}}}"#)
    };
    format!(
        r#"{{"id":"{id}","object":"thread.run.step","run_id":"run_1","thread_id":"thread_1","status":"{status}","step_details":{details}}}"#
    )
}

/// A list as JSON.
pub(crate) fn list(data: &[String]) -> String {
    format!(
        r#"{{"object":"list","data":[{}],"has_more":false}}"#,
        data.join(",")
    )
}

/// A message as JSON.
pub(crate) fn message(id: &str, status: &str) -> String {
    format!(
        r#"{{"id":"{id}","object":"thread.message","thread_id":"thread_1","run_id":"run_1","status":"{status}"}}"#
    )
}

/// An event as upstreams frame it.
pub(crate) fn event(name: &str, data: impl AsRef<str>) -> Bytes {
    format!("event: {name}\ndata: {}\n\n", data.as_ref()).into()
}

/// The event of a run's status.
pub(crate) fn run_event(status: &str) -> Bytes {
    event(&format!("thread.run.{status}"), run(status))
}

/// The event that ends a stream.
pub(crate) fn done() -> Bytes {
    event("done", "[DONE]")
}

/// The answer to a poll of the run.
pub(crate) fn polled(status: &str) -> Answer {
    Answer::json(200, run(status))
}

/// The answer to a poll of whichever run is asked for.
pub(crate) fn polled_any(request: &Recorded, status: &str) -> Answer {
    let id = request.target.rsplit('/').next().expect("a run");
    Answer::json(200, run(status).replace("run_1", id))
}

/// An error as the upstream says it in a body or an event.
pub(crate) fn error(code: &str) -> String {
    format!(r#"{{"error":{{"message":"it said so","type":"","param":null,"code":"{code}"}}}}"#)
}

pub(crate) fn create() -> StreamCreateRunRequest {
    StreamCreateRunRequest {
        thread_id: "thread_1".into(),
        run: Some(RunSpec {
            assistant_id: "asst_1".into(),
            ..RunSpec::default()
        }),
        ..StreamCreateRunRequest::default()
    }
}

pub(crate) fn create_with(options: StreamOptions) -> StreamCreateRunRequest {
    StreamCreateRunRequest {
        options: Some(options),
        ..create()
    }
}

pub(crate) fn watch() -> WatchRunRequest {
    WatchRunRequest {
        thread_id: "thread_1".into(),
        run_id: "run_1".into(),
        ..WatchRunRequest::default()
    }
}

pub(crate) fn wait() -> WaitRunRequest {
    WaitRunRequest {
        thread_id: "thread_1".into(),
        run_id: "run_1".into(),
        ..WaitRunRequest::default()
    }
}

pub(crate) fn cancel() -> CancelRunRequest {
    CancelRunRequest {
        thread_id: "thread_1".into(),
        run_id: "run_1".into(),
    }
}

pub(crate) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Waits for what has to happen soon; a test that waits in vain fails.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what)
        .await
        .expect("should have happened by now")
}

/// The next event of a stream that has one.
pub(crate) async fn next(stream: &mut Streaming<RunEvent>) -> RunEvent {
    soon(stream.message())
        .await
        .expect("an event, no error")
        .expect("an event, not the end")
}

/// All that a caller heard, to the end.
pub(crate) struct Heard {
    pub(crate) events: Vec<RunEvent>,
    pub(crate) status: Status,
}

/// Reads a stream to its end.
pub(crate) async fn hear(mut stream: Streaming<RunEvent>) -> Heard {
    let mut events = Vec::new();
    loop {
        match soon(stream.message()).await {
            Ok(Some(event)) => events.push(event),
            Ok(None) => {
                return Heard {
                    events,
                    status: Status::ok(""),
                };
            }
            Err(status) => return Heard { events, status },
        }
    }
}

impl Heard {
    /// The events' names, see [`name`].
    pub(crate) fn names(&self) -> Vec<String> {
        self.events.iter().map(name).collect()
    }
}

/// A short name: `run.completed`, `unknown`, `heartbeat`; with `*` if the gateway made the event.
pub(crate) fn name(event: &RunEvent) -> String {
    let mut name = event
        .r#type()
        .as_str_name()
        .trim_start_matches("RUN_EVENT_TYPE_")
        .to_lowercase();
    for (long, short) in [
        ("thread_run_step_", "step."),
        ("thread_run_", "run."),
        ("thread_message_", "message."),
        ("thread_", "thread."),
    ] {
        name = name.replace(long, short);
    }
    if event.r#type() == RunEventType::Unspecified {
        name = String::from(if matches!(event.payload, Some(Payload::Unknown(_))) {
            "unknown"
        } else {
            "other"
        });
    }
    if event.synthesized { name + "*" } else { name }
}

/// The run that an event is about.
pub(crate) fn run_of(event: &RunEvent) -> &Run {
    match &event.payload {
        Some(Payload::Run(run)) => run,
        other => panic!("{other:?} is not a run"),
    }
}

/// The JSON of an event's payload.
pub(crate) fn json_of(event: &RunEvent) -> String {
    let encoded = match event.payload.as_ref().expect("a payload") {
        Payload::Thread(it) => json::encode(it.as_ref()),
        Payload::Run(it) => json::encode(it.as_ref()),
        Payload::RunStep(it) => json::encode(it.as_ref()),
        Payload::RunStepDelta(it) => json::encode(it.as_ref()),
        Payload::Message(it) => json::encode(it.as_ref()),
        Payload::MessageDelta(it) => json::encode(it.as_ref()),
        other => panic!("{other:?} is no JSON"),
    };
    String::from_utf8(encoded.expect("it was decoded")).expect("JSON is text")
}

/// Code and reason.
pub(crate) fn verdict(status: &Status) -> (Code, String) {
    (
        status.code(),
        status
            .get_details_error_info()
            .map(|info| info.reason)
            .unwrap_or_default(),
    )
}

/// What a status says about how to resume.
pub(crate) fn resume(status: &Status) -> HashMap<String, String> {
    let mut info = status
        .get_details_error_info()
        .expect("an ErrorInfo")
        .metadata;
    info.retain(|name, _| ["thread_id", "run_id", "last_event"].contains(&name.as_str()));
    info
}

/// How to resume `run_1` after an event.
pub(crate) fn resume_after(event: &str) -> HashMap<String, String> {
    [
        ("thread_id", "thread_1"),
        ("run_id", "run_1"),
        ("last_event", event),
    ]
    .map(|(name, value)| (name.into(), value.into()))
    .into()
}
