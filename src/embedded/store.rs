//! What the API remembers: assistants, and threads with their messages and runs.
//!
//! Must hold: a thread's rows change, and events are published, in [`Thread::apply`] and nowhere
//! else; memory is bounded by [`Limits`]: the threads that were not used for longest go, never one
//! whose run is active or that was used within the last second ([`USED`]), and where none can go,
//! what would add to them is refused; whoever looks at a thread sees its run as it is now, expired
//! if its time is over, whether or not a task has come to say so. One lock guards it all: requests
//! are short, and nothing waits while it is held.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::sync::Notify;

use super::{
    Limits,
    clock::stamp,
    error::Error,
    rows::{Change, Row, Rows},
    run::Ending,
    stream::Events,
};
use crate::v1::{Assistant, RunStatus};

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
    rows: Rows,
    /// Where the events of the last run go.
    events: Events,
    /// Wakes the task that drives the last run.
    wake: Arc<Notify>,
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

    pub(super) fn assistant(&self, id: &str) -> Result<&Assistant, Error> {
        let assistant = self.assistants().find(|assistant| assistant.id == id);
        assistant.ok_or_else(|| Error::not_found("assistant", id))
    }

    /// Keeps an assistant, in the place of its older form if there is one.
    pub(super) fn put_assistant(&mut self, assistant: Assistant) {
        let mut assistants = self.assistants.iter_mut();
        match assistants.find(|it| it.id == assistant.id) {
            Some(older) => *older = assistant,
            None => self.assistants.push_back(assistant),
        }
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
        let id = thread.rows.resource.id.clone();
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
        if let Some(run) = thread.rows.active_run().filter(|run| run.is_due(now)) {
            thread.apply(run.end(Ending::Expired, &thread.rows.messages, now));
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

impl Drop for Thread {
    /// Nobody can see it any more: what drives its run is to stop.
    fn drop(&mut self) {
        self.wake.notify_one();
    }
}

impl Thread {
    /// A thread that is being made. The events of its run go to `events`.
    pub(super) fn new(created: Vec<Change>, events: Events, now: Duration) -> Self {
        let mut thread = Self {
            rows: Rows::default(),
            events,
            wake: Arc::default(),
            bytes: 0,
            used: (now, 0),
        };
        thread.apply(created);
        thread
    }

    pub(super) fn rows(&self) -> &Rows {
        &self.rows
    }

    /// Wakes when the last run has been cancelled, or the thread is gone.
    pub(super) fn wake(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }

    /// From now on the events of its run go to `events`.
    pub(super) fn follow(&mut self, events: Events) {
        self.events = events;
        self.wake = Arc::default();
    }

    /// Keeps the rows of a transition and publishes its events.
    pub(super) fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        for Change { row, event } in changes {
            if let Some(event) = event {
                self.publish(event, &row);
            }
            self.rows.put(row);
        }
    }

    /// Publishes an event. `done` follows where there are no more until somebody asks for them.
    fn publish(&mut self, event: &str, row: &Row) {
        self.events.send(event, row);
        let Row::Run(run) = row else { return };
        match run.status() {
            RunStatus::Queued | RunStatus::InProgress => {}
            RunStatus::Cancelling => self.wake.notify_one(),
            _ => self.events.done(),
        }
    }

    /// Nobody uses it, nor waits for its run.
    fn may_go(&self, now: Duration) -> bool {
        let active = self.rows.active_run();
        let is_at_work = active.is_some_and(|run| !run.is_due(now));
        !is_at_work && now.saturating_sub(self.used.0) >= USED
    }

    /// Drops what is beyond the limits and measures the rest.
    fn weight(&mut self, limits: &Limits) -> usize {
        let Rows { messages, runs, .. } = &mut self.rows;
        messages.drain(..messages.len().saturating_sub(limits.messages));
        runs.drain(..runs.len().saturating_sub(limits.runs.max(1)));
        self.rows.weight()
    }
}
