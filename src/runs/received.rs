//! One frame of the upstream as an event of the contract.
//!
//! Must hold: everything arrives. What has an unknown name, or data that is not what its name
//! promises, is an [`UnknownEvent`] with name and data verbatim. Two dialects are read: `event:`
//! and `data:` lines, and (`LiteLLM`'s) the event's name inside of the data:
//! `{"event":"thread.run.created","data":{…}}`. `event: message` is no name: it is the one that an
//! event without any has (WHATWG HTML, 9.2.6). Without a name, a run is its state, and an error is
//! one.

use std::borrow::Cow;

use bytes::Bytes;

use super::progress::run_event;
use crate::{
    json::{self, Names as _},
    upstream::{self, sse::Frame},
    v1::{Run, RunEvent, RunEventType, UnknownEvent, run_event::Payload},
};

/// What a frame says.
pub(super) enum Received {
    /// An event to pass on.
    Event(RunEvent),
    /// The upstream says that its stream is over.
    Done,
    /// The upstream says that it failed, in these words (JSON).
    Error(Bytes),
}

/// Reads a frame.
pub(super) fn received(frame: Frame<'_>) -> Received {
    let (name, verbatim) = named(frame);
    let data = upstream::without_mark(verbatim);
    match &*name {
        b"done" => return Received::Done,
        b"error" => return Received::Error(Bytes::copy_from_slice(data)),
        b"" if frame.is_done() => return Received::Done,
        // Proxies report their own failures so.
        b"" if upstream::is_error(data) => {
            return Received::Error(Bytes::copy_from_slice(data));
        }
        // An upstream that does not stream, and says that it does.
        b"" => {
            if let Some(event) = run_alone(data) {
                return Received::Event(event);
            }
        }
        _ => {}
    }
    let known = event_type(&name).and_then(|kind| Some((kind, payload(kind, data)?)));
    let (kind, payload) = known.unwrap_or_else(|| {
        (
            RunEventType::Unspecified,
            Payload::Unknown(Box::new(unknown(&name, verbatim))),
        )
    });
    Received::Event(RunEvent {
        r#type: kind.into(),
        payload: Some(payload),
        synthesized: false,
        position: String::new(),
    })
}

/// The event of a run that stands where an event should.
fn run_alone(data: &[u8]) -> Option<RunEvent> {
    if json::text_member(data, "object")? != "thread.run" {
        return None;
    }
    let run: Box<Run> = json::decode_boxed(data).ok()?;
    (!run.id.is_empty()).then(|| run_event(run))
}

/// The event's name and data, wherever they stand.
fn named(frame: Frame<'_>) -> (Cow<'_, [u8]>, &[u8]) {
    let Frame { event, data, .. } = frame;
    if !matches!(event, b"" | b"message") {
        return (Cow::Borrowed(event), data);
    }
    let text = upstream::without_mark(data);
    match json::text_member(text, "event").zip(json::member(text, "data")) {
        // `done` has its data as a JSON string, which nobody reads.
        Some((name, data)) => (Cow::Owned(name.into_bytes()), data.as_bytes()),
        None => (Cow::Borrowed(b""), data),
    }
}

/// The type of an event of the REST API: `thread.run.created` is `THREAD_RUN_CREATED`.
fn event_type(name: &[u8]) -> Option<RunEventType> {
    let mut words = [0; 64];
    words.get_mut(..name.len())?.copy_from_slice(name);
    let words = words.map(|byte| if byte == b'.' { b'_' } else { byte });
    let kind = RunEventType::try_from(RunEventType::number(&words[..name.len()])?).ok()?;
    (kind < RunEventType::Heartbeat).then_some(kind)
}

/// The data as what the type promises; `None` if it is something else.
fn payload(kind: RunEventType, data: &[u8]) -> Option<Payload> {
    use RunEventType as T;
    Some(match kind {
        T::ThreadCreated => Payload::Thread(json::decode_boxed(data).ok()?),
        T::ThreadRunStepDelta => Payload::RunStepDelta(json::decode_boxed(data).ok()?),
        T::ThreadMessageDelta => Payload::MessageDelta(json::decode_boxed(data).ok()?),
        T::ThreadRunStepCreated
        | T::ThreadRunStepInProgress
        | T::ThreadRunStepCompleted
        | T::ThreadRunStepFailed
        | T::ThreadRunStepCancelled
        | T::ThreadRunStepExpired => Payload::RunStep(json::decode_boxed(data).ok()?),
        T::ThreadMessageCreated
        | T::ThreadMessageInProgress
        | T::ThreadMessageCompleted
        | T::ThreadMessageIncomplete => Payload::Message(json::decode_boxed(data).ok()?),
        T::ThreadRunCreated
        | T::ThreadRunQueued
        | T::ThreadRunInProgress
        | T::ThreadRunRequiresAction
        | T::ThreadRunCompleted
        | T::ThreadRunIncomplete
        | T::ThreadRunFailed
        | T::ThreadRunCancelling
        | T::ThreadRunCancelled
        | T::ThreadRunExpired => Payload::Run(json::decode_boxed(data).ok()?),
        T::Unspecified | T::Done | T::Heartbeat | T::Gap => return None,
    })
}

fn unknown(name: &[u8], data: &[u8]) -> UnknownEvent {
    let name = String::from_utf8_lossy(name).into_owned();
    match std::str::from_utf8(data) {
        Ok(data) => UnknownEvent {
            name,
            data: data.to_owned(),
            binary_data: Vec::new(),
        },
        Err(_) => UnknownEvent {
            name,
            data: String::new(),
            binary_data: data.to_vec(),
        },
    }
}
