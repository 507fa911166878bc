//! A thread and its messages, as they are made of what callers send.

use std::time::Duration;

use super::{
    clock::stamp,
    error::Error,
    id,
    rows::{Change, Row, Rows},
};
use crate::v1::{
    ContentPart, ContentPartType, InputContentPart, MessageInput, MessageStatus, TextContent,
    ThreadMessage, ThreadResource, ThreadSpec,
};

/// A thread is made, with its first messages.
pub(super) fn create(spec: ThreadSpec, now: Duration) -> Vec<Change> {
    let thread = ThreadResource {
        id: id::new("thread"),
        object: "thread".to_owned(),
        created_at: Some(stamp(now)),
        tool_resources: spec.tool_resources,
        metadata: spec.metadata,
        extra_json: String::new(),
    };
    let id = thread.id.clone();
    let mut changes = vec![Row::Thread(thread).with_event("thread.created")];
    let messages = spec.messages.into_iter();
    changes.extend(messages.map(|input| Row::Message(message(&id, input, now)).without_event()));
    changes
}

/// A caller adds a message, which gets no event.
pub(super) fn add_message(
    rows: &Rows,
    input: MessageInput,
    now: Duration,
) -> Result<ThreadMessage, Error> {
    let thread_id = &rows.resource.id;
    if let Some(run) = rows.active_run() {
        let run = &run.resource.id;
        return Err(Error::conflict(format!(
            "Can't add messages to {thread_id} while a run {run} is active."
        )));
    }
    Ok(message(thread_id, input, now))
}

/// The message that a caller sent.
pub(super) fn message(thread_id: &str, input: MessageInput, now: Duration) -> ThreadMessage {
    let content = input.content.unwrap_or_default();
    let bare = content.text.map(|text| InputContentPart {
        text: Some(text),
        ..InputContentPart::default()
    });
    ThreadMessage {
        id: id::new("msg"),
        object: "thread.message".to_owned(),
        created_at: Some(stamp(now)),
        thread_id: thread_id.to_owned(),
        status: MessageStatus::Completed.into(),
        completed_at: Some(stamp(now)),
        role: input.role,
        content: bare.into_iter().chain(content.parts).map(part).collect(),
        attachments: input.attachments,
        metadata: input.metadata,
        ..ThreadMessage::default()
    }
}

fn part(input: InputContentPart) -> ContentPart {
    let kind = match (input.r#type(), &input.text) {
        (ContentPartType::Unspecified, Some(_)) => ContentPartType::Text,
        (kind, _) => kind,
    };
    ContentPart {
        r#type: kind.into(),
        text: input.text.map(|text| TextContent {
            value: Some(text),
            ..TextContent::default()
        }),
        image_file: input.image_file,
        image_url: input.image_url,
        ..ContentPart::default()
    }
}
