//! How runs end and what they used, each run once.
//!
//! A run that has ended is seen many times: by every event stream, poller and `GetRun` that shows it. It is counted the first time, if it ended while
//! this gateway was running; who reads old runs changes no metric.

use std::{
    collections::{HashSet, VecDeque},
    hash::{BuildHasher as _, RandomState},
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use super::Metrics;
use crate::v1::{Run, RunStatus};

/// As many runs as are remembered to have been counted; 16 bytes each.
const REMEMBERED: usize = 16_384;

/// Clocks differ: a run that ended up to this many seconds before the gateway began counts.
const SKEW: i64 = 60;

/// Which runs were counted.
pub(super) struct Outcomes {
    since: i64,
    hasher: RandomState,
    counted: Mutex<Counted>,
}

#[derive(Default)]
struct Counted {
    runs: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Default for Outcomes {
    fn default() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let since = i64::try_from(now).unwrap_or(i64::MAX) - SKEW;
        Self { since, hasher: RandomState::new(), counted: Mutex::default() }
    }
}

impl Outcomes {
    pub(super) fn saw(&self, run: &Run, metrics: &Metrics) {
        let Some(status) = ending(run.status()) else { return };
        let times = [&run.completed_at, &run.failed_at, &run.cancelled_at];
        let ended = times.into_iter().flatten().map(|time| time.seconds).max();
        // An expired run has none of them.
        let ended = ended.or([&run.expires_at, &run.created_at].into_iter().flatten().map(|time| time.seconds).next());
        if ended.is_some_and(|ended| ended < self.since) || !self.is_new(run) {
            return;
        }
        metrics.run_ended(status, run.last_error.as_ref().map(|error| &*error.code));
        if let Some(usage) = &run.usage {
            for (kind, tokens) in [("input", usage.prompt_tokens), ("output", usage.completion_tokens)] {
                if let Some(tokens) = tokens.and_then(|tokens| u32::try_from(tokens).ok()) {
                    metrics.tokens(kind, &run.model, f64::from(tokens));
                }
            }
        }
    }

    fn is_new(&self, run: &Run) -> bool {
        let id = self.hasher.hash_one((&run.thread_id, &run.id));
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if !counted.runs.insert(id) {
            return false;
        }
        counted.order.push_back(id);
        if counted.order.len() > REMEMBERED {
            let oldest = counted.order.pop_front();
            oldest.map(|oldest| counted.runs.remove(&oldest));
        }
        true
    }
}

/// The label of a status that ends a run; `None` for those that do not.
fn ending(status: RunStatus) -> Option<&'static str> {
    Some(match status {
        RunStatus::Completed => "completed",
        RunStatus::Failed => "failed",
        RunStatus::Cancelled => "cancelled",
        RunStatus::Incomplete => "incomplete",
        RunStatus::Expired => "expired",
        RunStatus::Unspecified
        | RunStatus::Queued
        | RunStatus::InProgress
        | RunStatus::RequiresAction
        | RunStatus::Cancelling => {
            return None;
        }
    })
}
