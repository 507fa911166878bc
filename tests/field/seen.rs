//! What a caller sees of a call, short enough for a row of a table.

use std::time::Duration;

use runs_gateway::v1::{RunEvent, RunEventType, run_event::Payload};
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;

/// A status, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) code: Code,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) retry_after: Option<Duration>,
    /// The field that is to blame.
    pub(crate) field: String,
    pub(crate) upstream_code: String,
    pub(crate) thread_id: String,
    pub(crate) run_id: String,
}

impl From<&Status> for Seen {
    fn from(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let word = |name: &str| {
            let word = info.and_then(|info| info.metadata.get(name));
            word.cloned().unwrap_or_default()
        };
        let blamed = details
            .bad_request()
            .and_then(|bad| bad.field_violations.first());
        Self {
            code: status.code(),
            reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
            message: status.message().to_owned(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            field: blamed.map(|it| it.field.clone()).unwrap_or_default(),
            upstream_code: word("upstream_code"),
            thread_id: word("thread_id"),
            run_id: word("run_id"),
        }
    }
}

/// All of a stream: short names of its events (`*` if the gateway made them, and of a gap what it
/// names), and the status that ended it, if that was not OK.
pub(crate) async fn hear(
    stream: Result<Streaming<RunEvent>, Status>,
) -> (Vec<String>, Option<Seen>) {
    let mut names = Vec::new();
    let mut stream = match stream {
        Ok(stream) => stream,
        Err(status) => return (names, Some(Seen::from(&status))),
    };
    loop {
        let next = tokio::time::timeout(Duration::from_secs(20), stream.message());
        match next.await.expect("an event within 20 s") {
            Ok(Some(event)) => names.push(name(&event)),
            Ok(None) => return (names, None),
            Err(status) => return (names, Some(Seen::from(&status))),
        }
    }
}

/// The short name of an event.
pub(crate) fn name(event: &RunEvent) -> String {
    let name = event.r#type().as_str_name();
    let name = name
        .trim_start_matches("RUN_EVENT_TYPE_")
        .to_ascii_lowercase();
    let name = name.trim_start_matches("thread_").to_owned();
    let mark = if event.synthesized { "*" } else { "" };
    match &event.payload {
        Some(Payload::Gap(gap)) => {
            let ids = [&gap.run_step_ids[..], &gap.message_ids[..]].concat();
            format!("gap({})", ids.join(","))
        }
        Some(Payload::Unknown(unknown)) => format!("unknown({})", unknown.name),
        _ if event.r#type() == RunEventType::Heartbeat => "heartbeat".to_owned(),
        _ => format!("{name}{mark}"),
    }
}
