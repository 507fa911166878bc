//! A run by polling, as far as a stream that lost its upstream needs it: until the run is terminal
//! or requires action.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    changes::Changes,
    fetch::{Snapshot, is_of, is_whole, messages_of},
    is_settled,
    progress::{Progress, gap_event, message_event, run_event},
    watch::Subscription,
};
use crate::{
    error::Error,
    upstream::{Caller, Client},
    v1::{Gap, GetMessageRequest, Run, RunEvent, RunStatus, ThreadMessage, run_event::Payload},
};

/// A run that is followed. Dropping it stops the polling.
pub(super) struct Follow {
    watch: Subscription,
    changes: Changes,
    mode: Mode,
    /// A state that has come and was not told yet: the first, if it was awaited before anybody asked
    /// for it, and one for which something else has to be read.
    untold: Option<Arc<Snapshot>>,
    /// What reads messages that no step tells of.
    reads: Option<(Client, Caller)>,
}

/// What a run is followed for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The rest of a stream: what was missed is said once the run is settled.
    Rest,
    /// A stream that is resumed, and nothing was told yet: what was missed is said first, and what
    /// is found later comes as events of its own.
    Resumed,
    /// The same, after the first state.
    On,
}

/// What following a run gives next.
pub(super) enum Followed {
    /// It goes on; these events tell how.
    On(Vec<RunEvent>),
    /// It is terminal or requires action; these events are the last: what was missed, and the run's
    /// state.
    Settled(Vec<RunEvent>, Box<Run>),
}

impl Follow {
    /// Follows the run of a watch that was joined with steps, or with messages, which are then sent
    /// as far as they were missed.
    pub(super) fn new(watch: Subscription) -> Self {
        Self {
            watch,
            changes: Changes::default(),
            mode: Mode::Rest,
            untold: None,
            reads: None,
        }
    }

    /// Follows the run of a watch that was joined with messages, for a stream that is resumed: the
    /// first event is a gap, unless nothing was missed of what an earlier one began.
    pub(super) fn resumed(watch: Subscription) -> Self {
        Self {
            mode: Mode::Resumed,
            ..Self::new(watch)
        }
    }

    /// Reads what a gap names and no step tells of, as this caller.
    pub(super) fn reading(mut self, client: Client, caller: Caller) -> Self {
        self.reads = Some((client, caller));
        self
    }

    /// The messages that a gap names, as far as they can be read.
    async fn texts(&self, gap: &Gap, snapshot: &Snapshot) -> Vec<ThreadMessage> {
        let Some(messages) = &snapshot.messages else {
            return Vec::new();
        };
        let read: HashMap<_, _> = messages.read.iter().map(|it| (&it.id, it)).collect();
        let unread: HashSet<_> = messages.unread.iter().collect();
        let mut texts = Vec::new();
        for id in &gap.message_ids {
            if let Some(message) = read.get(id) {
                texts.push(ThreadMessage::clone(message));
            } else if !unread.contains(id)
                && let Some((client, caller)) = &self.reads
            {
                let request = GetMessageRequest {
                    thread_id: snapshot.run.thread_id.clone(),
                    message_id: id.clone(),
                };
                match client.get_message(caller, &request).await {
                    Ok(message) if is_whole(&message.message) => texts.push(*message.message),
                    Ok(_) => {}
                    Err(error) => tracing::info!(error = %error.log(), "a message was not read"),
                }
            }
        }
        texts
    }

    /// Waits for the first state: its error is that of a run that cannot be had.
    pub(super) async fn begin(&mut self) -> Result<(), Arc<Error>> {
        self.untold = Some(self.watch.next().await?);
        Ok(())
    }

    /// What comes next, given what was sent. May be dropped while it waits: nothing is lost.
    pub(super) async fn next(&mut self, progress: &Progress) -> Result<Followed, Arc<Error>> {
        let snapshot = match self.untold.take() {
            Some(untold) => untold,
            None => self.watch.next().await?,
        };
        if self.mode != Mode::Rest {
            return Ok(self.resume(&snapshot, progress));
        }
        if !is_settled(snapshot.run.status()) {
            let changes = self.changes.to(&snapshot, true, false).into_iter();
            return Ok(Followed::On(
                changes.filter(|event| !progress.has(event)).collect(),
            ));
        }
        self.untold = Some(Arc::clone(&snapshot));
        let gap = match (&snapshot.steps, progress.gap(&snapshot)) {
            // Something was missed, and nobody can say what: a gap that names nothing says so.
            (Some(Err(_)), None) => Some(Gap::default()),
            (Some(Ok(steps)), None) if steps.is_empty() => self.unheard(&snapshot, progress).await,
            (_, gap) => gap,
        };
        let mut events = Vec::new();
        if let Some(gap) = gap {
            let missed = self.texts(&gap, &snapshot).await;
            events.push(gap_event(gap));
            events.extend(missed.into_iter().map(message_event));
        }
        self.untold = None;
        events.push(run_event(snapshot.run.clone()));
        Ok(Followed::Settled(events, snapshot.run.clone()))
    }

    /// What was missed of a run that has no steps, and said something of which nothing was heard.
    async fn unheard(&self, snapshot: &Snapshot, progress: &Progress) -> Option<Gap> {
        let run = &snapshot.run;
        let is_heard = snapshot.messages.is_some() || progress.whole().next().is_some();
        let (client, caller) = self.reads.as_ref()?;
        if is_heard || !matches!(run.status(), RunStatus::Completed | RunStatus::Incomplete) {
            return None;
        }
        let listed = client.list_messages(caller, &messages_of(run)).await;
        let listed = match listed {
            Ok(listed) => listed.message,
            Err(error) => {
                tracing::info!(error = %error.log(), "messages were not listed");
                return Some(Gap::default());
            }
        };
        let goes_on = listed.has_more();
        let own = listed.data.into_iter();
        let own = own.filter(|message| is_of(message, run));
        let message_ids: Vec<_> = own.map(|message| message.id).collect();
        // On a later page there may be more: a service that does not know the filter lists the thread.
        (goes_on || !message_ids.is_empty()).then(|| Gap {
            message_ids,
            ..Gap::default()
        })
    }

    /// The next events of a stream that is resumed.
    fn resume(&mut self, snapshot: &Snapshot, progress: &Progress) -> Followed {
        let mut events = Vec::new();
        let mut gap = Gap::default();
        // Where an earlier one has begun, all was told that can be told.
        let is_first = self.mode == Mode::Resumed && !progress.is_polled();
        if self.mode == Mode::Resumed {
            self.mode = Mode::On;
            if progress.terminal_sent() && progress.has(&run_event(snapshot.run.clone())) {
                // Nothing has happened since the run began to wait.
                return Followed::Settled(events, snapshot.run.clone());
            }
            self.changes.skip(progress.whole());
            gap = progress.missed(snapshot);
            if is_first || gap != Gap::default() {
                events.push(gap_event(gap.clone()));
            }
        }
        let missed: HashSet<_> = gap.run_step_ids.iter().collect();
        let changes = self.changes.to(snapshot, true, true).into_iter();
        events.extend(changes.filter(|event| match &event.payload {
            Some(Payload::RunStep(step)) => !progress.has(event) && !missed.contains(&step.id),
            Some(Payload::Run(_)) => is_first || !progress.has(event),
            _ => true,
        }));
        if is_settled(snapshot.run.status()) {
            Followed::Settled(events, snapshot.run.clone())
        } else {
            Followed::On(events)
        }
    }
}
