//! States of a run as events: one for each change of the run and of its steps.

use std::collections::HashMap;

use super::progress::{run_event, step_event};
use crate::v1::{Run, RunEvent, RunStep};

/// What was told last.
#[derive(Debug, Default)]
pub(super) struct Changes {
    run: Option<Box<Run>>,
    steps: HashMap<String, RunStep>,
}

impl Changes {
    /// The events that tell of a new state: steps, oldest first, then the run, so that a run's last
    /// event is the last.
    pub(super) fn to(&mut self, run: &Run, steps: &[RunStep]) -> Vec<RunEvent> {
        let mut events = Vec::new();
        for step in steps {
            if self.steps.get(&step.id) != Some(step) {
                self.steps.insert(step.id.clone(), step.clone());
                events.push(step_event(step.clone()));
            }
        }
        if self.run.as_deref() != Some(run) {
            let run = Box::new(run.clone());
            self.run = Some(run.clone());
            events.push(run_event(run));
        }
        events
    }
}
