//! States of a run as events: one for each change of the run and of its steps, and one for each
//! message that is whole.

use std::collections::{HashMap, HashSet};

use super::{
    fetch::{Messages, Snapshot, message_id},
    progress::{gap_event, message_event, run_event, step_event},
};
use crate::v1::{Gap, RunEvent, ThreadMessage};

/// What was told last: the marks of the run and its steps.
#[derive(Debug, Default)]
pub(super) struct Changes {
    run: Option<u64>,
    steps: HashMap<String, u64>,
    messages: HashSet<String>,
}

impl Changes {
    /// Messages that were told in another way.
    pub(super) fn skip<'a>(&mut self, messages: impl Iterator<Item = &'a String>) {
        self.messages.extend(messages.cloned());
    }

    /// The events that tell of a new state: steps, oldest first, each with its message behind it,
    /// then the run, so that a run's last event is the last. Other watchers of the run may have
    /// asked for more than this one.
    pub(super) fn to(
        &mut self,
        snapshot: &Snapshot,
        include_steps: bool,
        include_messages: bool,
    ) -> Vec<RunEvent> {
        let mut events = Vec::new();
        let none = Messages::default();
        let messages = match &snapshot.messages {
            Some(messages) if include_messages => messages,
            _ => &none,
        };
        let made: HashMap<_, _> = messages.read.iter().map(|it| (&*it.id, it)).collect();
        for (step, mark) in snapshot.marked_steps() {
            if include_steps && self.steps.get(&step.id) != Some(&mark) {
                self.steps.insert(step.id.clone(), mark);
                events.push(step_event(step.clone()));
            }
            if let Some(message) = message_id(step).and_then(|id| made.get(id)) {
                self.tell(message, &mut events);
            }
        }
        for message in &messages.read {
            self.tell(message, &mut events);
        }
        if self.run.replace(snapshot.run_mark()) != Some(snapshot.run_mark()) {
            if snapshot.run.status().is_terminal() {
                let lost_steps = include_steps && matches!(snapshot.steps, Some(Err(_)));
                events.extend(unread(messages, lost_steps).map(gap_event));
            }
            events.push(run_event(snapshot.run.clone()));
        }
        events
    }

    /// Tells of a message, once.
    fn tell(&mut self, message: &ThreadMessage, events: &mut Vec<RunEvent>) {
        if !self.messages.contains(&message.id) {
            self.messages.insert(message.id.clone());
            events.push(message_event(message.clone()));
        }
    }
}

/// What cannot be told of a run that is over. A gap that names nothing: nobody knows what it is.
fn unread(messages: &Messages, lost_steps: bool) -> Option<Gap> {
    let is_missing = lost_steps || messages.failed.is_some() || !messages.unread.is_empty();
    is_missing.then(|| Gap {
        message_ids: messages.unread.clone(),
        ..Gap::default()
    })
}
