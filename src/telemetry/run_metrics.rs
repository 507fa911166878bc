//! How runs end and what they used, each run once.
//!
//! A run that has ended is seen many times: by every event stream, poller and `GetRun` that shows
//! it. It is counted the first time, if it ended while this gateway was running; who reads old runs
//! changes no metric.

use std::{
    collections::{HashSet, VecDeque},
    hash::{BuildHasher as _, RandomState},
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{Metrics, tokens::kinds};
use crate::v1::{Run, RunStatus};

/// As many runs as are remembered to have been counted; 16 bytes each.
const REMEMBERED: usize = 16_384;

/// Clocks differ: a run that ended up to this many seconds before the gateway began counts.
const SKEW: i64 = 60;

/// Which runs were counted.
pub(super) struct RunMetrics {
    since: i64,
    hasher: RandomState,
    counted: Mutex<Counted>,
    /// Those of which a caller is known.
    attributed: Mutex<Counted>,
}

#[derive(Default)]
struct Counted {
    runs: HashSet<u64>,
    /// Them, the oldest first, and when each ended.
    order: VecDeque<(u64, Option<i64>)>,
    /// When the last of those that are not remembered any more ended.
    forgotten: Option<i64>,
}

impl Default for RunMetrics {
    fn default() -> Self {
        Self {
            since: now() - SKEW,
            hasher: RandomState::new(),
            counted: Mutex::default(),
            attributed: Mutex::default(),
        }
    }
}

impl RunMetrics {
    /// Counts a run that has ended.
    pub(super) fn saw(&self, run: &Run, metrics: &Metrics) {
        let Some(status) = self.counts(run, &self.counted) else {
            return;
        };
        metrics.run_ended(status, run.last_error.as_ref().map(|error| &*error.code));
        metrics.tokens(run);
    }

    /// Counts the tokens of a run that has ended to the caller of this label, if nobody was shown
    /// its end before.
    pub(super) fn shown(&self, run: &Run, caller: &str, metrics: &Metrics) {
        if self.counts(run, &self.attributed).is_some() {
            for (kind, tokens) in kinds(run) {
                metrics.caller_tokens(caller, kind, &run.model, tokens);
            }
        }
    }

    /// The label of the run's status, if it has ended, not too long ago, and was not `counted`.
    fn counts(&self, run: &Run, counted: &Mutex<Counted>) -> Option<&'static str> {
        let status = ending(run.status())?;
        let times = [&run.completed_at, &run.failed_at, &run.cancelled_at];
        let ended = times.into_iter().flatten().map(|time| time.seconds).max();
        // An expired run has none of them.
        let ended = ended.or([&run.expires_at, &run.created_at]
            .into_iter()
            .flatten()
            .map(|time| time.seconds)
            .next());
        let is_old = ended.is_some_and(|ended| ended < self.since);
        (!is_old && self.is_new(run, ended, counted)).then_some(status)
    }

    fn is_new(&self, run: &Run, ended: Option<i64>, counted: &Mutex<Counted>) -> bool {
        let id = self.hasher.hash_one((&run.thread_id, &run.id));
        let mut counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
        // It may be one of those: rather not counted than counted twice.
        if ended.is_some() && ended <= counted.forgotten || !counted.runs.insert(id) {
            return false;
        }
        counted.order.push_back((id, ended));
        if counted.order.len() > REMEMBERED
            && let Some((oldest, ended)) = counted.order.pop_front()
        {
            counted.runs.remove(&oldest);
            // A clock that is ahead, or a run told by when it would have expired, keeps nobody from
            // being counted.
            counted.forgotten = counted.forgotten.max(ended.map(|ended| ended.min(now())));
        }
        true
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    i64::try_from(now).unwrap_or(i64::MAX)
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

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;

    use super::*;
    use crate::telemetry::Settings;

    #[test]
    fn a_run_is_counted_once_even_if_it_is_read_again_after_more_others_than_are_remembered() {
        let (outcomes, metrics) = (RunMetrics::default(), Metrics::new(&Settings::default()));
        // One ends every second.
        let see = |number: usize| {
            let seconds = outcomes.since + i64::try_from(number).expect("few");
            let completed_at = Some(Timestamp { seconds, nanos: 0 });
            let status = RunStatus::Completed.into();
            outcomes.saw(
                &Run {
                    id: number.to_string(),
                    status,
                    completed_at,
                    ..Run::default()
                },
                &metrics,
            );
        };
        let last = REMEMBERED + 1;
        (0..=last).for_each(see);
        // Two of them are forgotten, two are not.
        [0, 1, 2, last].into_iter().for_each(see);
        let sample = format!(
            "runs_gateway_runs_ended_total{{error_code=\"\",status=\"completed\"}} {}\n",
            last + 1
        );
        assert!(metrics.render().contains(&sample), "{}", metrics.render());
    }
}
