//! A run by polling, as far as a stream that lost its upstream needs it: until the run is terminal
//! or requires action.

use std::sync::Arc;

use super::{
    changes::Changes,
    is_settled,
    progress::{Progress, gap_event, message_event, run_event},
    watch::Subscription,
};
use crate::{
    error::Error,
    v1::{Gap, Run, RunEvent},
};

/// A run that is followed. Dropping it stops the polling.
pub(super) struct Follow {
    watch: Subscription,
    changes: Changes,
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
    /// Follows the run of a watch that was joined with steps, or with messages, which are then sent as far as they were missed.
    pub(super) fn new(watch: Subscription) -> Self {
        Self {
            watch,
            changes: Changes::default(),
        }
    }

    /// What comes next, given what was sent. May be dropped while it waits: nothing is lost.
    pub(super) async fn next(&mut self, progress: &Progress) -> Result<Followed, Arc<Error>> {
        let snapshot = self.watch.next().await?;
        if !is_settled(snapshot.run.status()) {
            let changes = self.changes.to(&snapshot, true, false).into_iter();
            return Ok(Followed::On(
                changes.filter(|event| !progress.has(event)).collect(),
            ));
        }
        // Something was missed, and nobody can say what: a gap that names nothing says so.
        let gap = if snapshot.is_unknown() {
            Some(Gap::default())
        } else {
            progress.gap(&snapshot)
        };
        let mut events = Vec::new();
        if let Some(gap) = gap {
            let messages = snapshot.messages.iter().flat_map(|it| &it.read);
            let missed = messages.filter(|message| gap.message_ids.contains(&message.id));
            let missed: Vec<_> = missed.map(|it| message_event((**it).clone())).collect();
            events.push(gap_event(gap));
            events.extend(missed);
        }
        events.push(run_event(snapshot.run.clone()));
        Ok(Followed::Settled(events, snapshot.run.clone()))
    }
}
