//! A run by polling, as far as a stream that lost its upstream needs it: until the run is terminal
//! or requires action.

use std::sync::Arc;

use super::{
    changes::Changes,
    is_settled, is_terminal,
    progress::{Progress, run_event, synthesized},
    watch::Subscription,
};
use crate::{
    error::Error,
    v1::{Gap, Run, RunEvent, RunEventType, run_event::Payload},
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
    /// Follows the run of a watch that was joined with steps.
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
            let changes = self.changes.to(&snapshot.run, snapshot.steps()).into_iter();
            return Ok(Followed::On(
                changes.filter(|event| !progress.has(event)).collect(),
            ));
        }
        let is_over = is_terminal(snapshot.run.status());
        let gap = match snapshot.steps {
            // Something was missed, and nobody can say what: a gap that names nothing says so.
            Some(Err(_)) => Some(Gap::default()),
            _ => progress.gap(snapshot.steps(), is_over),
        };
        let gap = gap.map(|gap| synthesized(RunEventType::Gap, Payload::Gap(Box::new(gap))));
        let events = gap
            .into_iter()
            .chain([run_event(snapshot.run.clone())])
            .collect();
        Ok(Followed::Settled(events, snapshot.run.clone()))
    }
}
