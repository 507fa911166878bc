//! What the API remembers: assistants, and threads with their messages and runs.
//!
//! Must hold: memory is bounded by [`Limits`]: the threads that were not used for longest go, never
//! one whose run is active or that was used within the last second ([`USED`]), and where none can
//! go, what would add to them is refused; whoever looks at a thread sees its run as it is now,
//! expired if its time is over, whether or not a task has come to say so. One lock guards it all:
//! requests are short, and nothing waits while it is held.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use prost::Message as _;

use super::{
    Limits,
    clock::stamp,
    error::Error,
    id,
    run::{Ending, Run, is_active},
};
use crate::v1::{
    Assistant, ContentPart, ContentPartType, InputContentPart, MessageInput, MessageStatus,
    TextContent, ThreadMessage, ThreadResource, ThreadSpec,
};

/// The id of the assistant that is always there, for callers that cannot make one, as those of the
/// gateway cannot.
pub const ASSISTANT: &str = "asst_embedded";

/// How long a thread that was used does not go.
const USED: Duration = Duration::from_secs(1);

pub(super) struct Store {
    limits: Limits,
    assistants: VecDeque<Assistant>,
    threads: HashMap<String, Thread>,
    /// Numbers the uses of threads.
    uses: u64,
    bytes: usize,
}

/// A thread and all that is on it.
pub(super) struct Thread {
    pub(super) resource: ThreadResource,
    /// In the order of their creation.
    pub(super) messages: Vec<ThreadMessage>,
    /// In the order of their creation: only the last one can be active.
    pub(super) runs: Vec<Run>,
    bytes: usize,
    /// When it was used last, and which use that was.
    used: (Duration, u64),
}

impl Store {
    /// A store with one assistant, which is described so.
    pub(super) fn new(limits: Limits, description: &str, now: Duration) -> Self {
        let assistant = Assistant {
            id: ASSISTANT.to_owned(),
            object: "assistant".to_owned(),
            created_at: Some(stamp(now)),
            name: Some("Embedded".to_owned()),
            description: Some(description.to_owned()),
            model: "embedded".to_owned(),
            ..Assistant::default()
        };
        Self {
            limits,
            assistants: VecDeque::from([assistant]),
            threads: HashMap::new(),
            uses: 0,
            bytes: 0,
        }
    }

    /// All assistants, oldest first.
    pub(super) fn assistants(&self) -> impl Iterator<Item = &Assistant> {
        self.assistants.iter()
    }

    pub(super) fn assistant(&mut self, id: &str) -> Result<&mut Assistant, Error> {
        let assistant = self
            .assistants
            .iter_mut()
            .find(|assistant| assistant.id == id);
        assistant.ok_or_else(|| Error::not_found("assistant", id))
    }

    pub(super) fn add_assistant(&mut self, assistant: Assistant) {
        self.assistants.push_back(assistant);
        if self.assistants.len() > self.limits.assistants + 1 {
            self.assistants.remove(1);
        }
    }

    pub(super) fn delete_assistant(&mut self, id: &str) -> Result<(), Error> {
        self.assistant(id)?;
        // The first one is always there.
        self.assistants
            .retain(|assistant| assistant.id == ASSISTANT || assistant.id != id);
        Ok(())
    }

    /// Adds a thread, if there is room for one.
    pub(super) fn add_thread(&mut self, thread: Thread, now: Duration) -> Result<(), Error> {
        self.make_room(1, now)?;
        let id = thread.resource.id.clone();
        self.threads.insert(id.clone(), thread);
        self.thread(&id, now)?;
        self.weigh(&id, now);
        Ok(())
    }

    pub(super) fn delete_thread(&mut self, id: &str) -> Result<(), Error> {
        let thread = self
            .threads
            .remove(id)
            .ok_or_else(|| Error::not_found("thread", id))?;
        self.bytes -= thread.bytes;
        Ok(())
    }

    /// A thread as it is now.
    pub(super) fn thread(&mut self, id: &str, now: Duration) -> Result<&mut Thread, Error> {
        let thread = self
            .threads
            .get_mut(id)
            .ok_or_else(|| Error::not_found("thread", id))?;
        self.uses += 1;
        thread.used = (now, self.uses);
        if let Some(run) = thread.runs.last_mut().filter(|run| run.is_due(now)) {
            run.end(Ending::Expired, &mut thread.messages, now);
        }
        Ok(thread)
    }

    /// Changes a thread by what a caller sent, and holds memory to the limits.
    pub(super) fn write<T>(
        &mut self,
        id: &str,
        now: Duration,
        change: impl FnOnce(&mut Thread) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.thread(id, now)?;
        self.make_room(0, now)?;
        let changed = change(self.thread(id, now)?);
        self.weigh(id, now);
        changed
    }

    /// Measures a thread that has grown, and holds memory to the limits as far as threads can go.
    pub(super) fn weigh(&mut self, id: &str, now: Duration) {
        if let Some(thread) = self.threads.get_mut(id) {
            let bytes = thread.weight(&self.limits);
            self.bytes = self.bytes - thread.bytes + bytes;
            thread.bytes = bytes;
        }
        _ = self.make_room(0, now);
    }

    /// Makes room for `more` threads.
    fn make_room(&mut self, more: usize, now: Duration) -> Result<(), Error> {
        while self.threads.len() + more > self.limits.threads || self.bytes > self.limits.bytes {
            let idle = self.threads.iter().filter(|(_, thread)| thread.may_go(now));
            let oldest = idle.min_by_key(|(_, thread)| thread.used);
            let oldest = oldest.map(|(id, _)| id.clone());
            self.delete_thread(&oldest.ok_or_else(Error::full)?)?;
        }
        Ok(())
    }

    /// Forgets all threads. Streams of their runs end.
    pub(super) fn clear(&mut self) {
        self.threads.clear();
        self.bytes = 0;
    }
}

impl Thread {
    pub(super) fn new(spec: ThreadSpec, now: Duration) -> Self {
        let resource = ThreadResource {
            id: id::new("thread"),
            object: "thread".to_owned(),
            created_at: Some(stamp(now)),
            tool_resources: spec.tool_resources,
            metadata: spec.metadata,
            extra_json: String::new(),
        };
        let mut thread = Self {
            resource,
            messages: Vec::new(),
            runs: Vec::new(),
            bytes: 0,
            used: (now, 0),
        };
        for message in spec.messages {
            thread.add_message(message, now);
        }
        thread
    }

    pub(super) fn id(&self) -> &str {
        &self.resource.id
    }

    /// Nobody uses it, nor waits for its run.
    fn may_go(&self, now: Duration) -> bool {
        let is_at_work = self.active_run().is_some_and(|run| !run.is_due(now));
        !is_at_work && now.saturating_sub(self.used.0) >= USED
    }

    /// The run that holds the thread, if there is one.
    pub(super) fn active_run(&self) -> Option<&Run> {
        self.runs
            .last()
            .filter(|run| is_active(run.resource.status()))
    }

    /// A run, and the messages that it may write to.
    pub(super) fn run(&mut self, id: &str) -> Result<(&mut Run, &mut Vec<ThreadMessage>), Error> {
        let run = self
            .runs
            .iter_mut()
            .find(|run| run.resource.id == id)
            .ok_or_else(|| Error::not_found("run", id))?;
        Ok((run, &mut self.messages))
    }

    pub(super) fn message(&mut self, id: &str) -> Result<&mut ThreadMessage, Error> {
        self.messages
            .iter_mut()
            .find(|message| message.id == id)
            .ok_or_else(|| Error::not_found("message", id))
    }

    /// Adds a message that a caller sent.
    pub(super) fn add_message(&mut self, input: MessageInput, now: Duration) -> &ThreadMessage {
        let content = input.content.unwrap_or_default();
        let bare = content.text.map(|text| InputContentPart {
            text: Some(text),
            ..InputContentPart::default()
        });
        let message = ThreadMessage {
            id: id::new("msg"),
            object: "thread.message".to_owned(),
            created_at: Some(stamp(now)),
            thread_id: self.resource.id.clone(),
            status: MessageStatus::Completed.into(),
            completed_at: Some(stamp(now)),
            role: input.role,
            content: bare.into_iter().chain(content.parts).map(part).collect(),
            attachments: input.attachments,
            metadata: input.metadata,
            ..ThreadMessage::default()
        };
        self.messages.push(message);
        &self.messages[self.messages.len() - 1]
    }

    /// Drops what is beyond the limits and measures the rest.
    fn weight(&mut self, limits: &Limits) -> usize {
        self.messages
            .drain(..self.messages.len().saturating_sub(limits.messages));
        self.runs
            .drain(..self.runs.len().saturating_sub(limits.runs.max(1)));
        let messages: usize = self.messages.iter().map(prost::Message::encoded_len).sum();
        let runs: usize = self.runs.iter().map(Run::weight).sum();
        self.resource.encoded_len() + messages + runs
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
