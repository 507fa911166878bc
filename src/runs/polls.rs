//! What is known of all polls: who watches which run, and which look somebody waits for.
//!
//! Must hold: everything that decides about a poll is read and written under one lock.

use std::{
    collections::HashMap,
    hash::RandomState,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use clap::Args;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Log,
    fetch::{Pace, Parts, Snapshot},
    log,
};
use crate::{
    error::Error,
    setting::{defaults, some, some_time, time},
    shares::{Permit, Shares},
    upstream::{Client, Identity},
};

/// Limits of polling. [`Default`] suits most upstreams.
#[derive(Debug, Clone, Args)]
pub struct PollLimits {
    /// The shortest time between two polls of a run.
    #[arg(id = "poll-floor", long, default_value = "250ms", value_parser = time)]
    pub floor: Duration,

    /// The longest time between two polls of a run.
    #[arg(id = "poll-ceiling", long, default_value = "5s", value_parser = some_time)]
    pub ceiling: Duration,

    /// Polls a second, of all runs together.
    #[arg(id = "poll-rate", long, default_value = "200", value_parser = some::<u32>)]
    pub rate: u32,

    /// Runs polled at a time; one more is refused.
    #[arg(id = "max-polled-runs", long, default_value = "10000", value_parser = some::<usize>)]
    pub runs: usize,

    /// How long polls may fail before watches end.
    #[arg(id = "poll-failure-timeout", long, default_value = "1m", value_parser = time)]
    pub patience: Duration,

    /// The most that the steps of one polled run may take, in bytes; its messages, the same.
    #[arg(id = "max-polled-step-bytes", long, default_value_t = 16 << 20, value_parser = some::<usize>)]
    pub step_bytes: usize,
}

impl Default for PollLimits {
    fn default() -> Self {
        defaults()
    }
}

/// What a watcher wants of a run, and how soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interest {
    /// The run, at the ceiling's pace and after each write through this gateway: it waits for
    /// something else, and only must not wait in vain.
    Seldom,
    /// These parts, now and as they change.
    Now(Parts),
}

/// What all pollers of one gateway share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) client: Client,
    /// What replicas share, if there is such.
    pub(super) log: Option<Log>,
    pub(super) limits: PollLimits,
    pub(super) runs: Shares,
    pub(super) polls: Mutex<HashMap<Key, Poll>>,
    pub(super) pace: Pace,
    /// Held by the one poller that waits for a slot without anybody having asked for this fetch.
    /// However many runs are watched, a new watcher, or a run that was changed, has one of those
    /// before it at most.
    pub(super) routine: tokio::sync::Mutex<()>,
    /// Until when an identity was asked to wait.
    /// Under a keyed hash: it outlives the last watcher, and a credential must not.
    pub(super) slowed: Mutex<HashMap<u64, Instant>>,
    pub(super) hasher: RandomState,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) thread_id: String,
    pub(super) run_id: String,
    pub(super) identity: Identity,
}

/// One poller, as its watchers see it. Everything is read and written under the lock of
/// [`Shared::polls`].
#[derive(Debug)]
pub(super) struct Poll {
    pub(super) watchers: Watchers,
    /// Fetches that have begun.
    pub(super) begun: u64,
    /// The first fetch that somebody waits for; the poller does not sleep before it.
    pub(super) wanted: u64,
    /// What other replicas call the run.
    pub(super) run_key: Option<log::Key>,
    pub(super) wake: Arc<Notify>,
    pub(super) published: watch::Receiver<Option<Published>>,
    pub(super) _permit: Permit,
    pub(super) _task: AbortOnDropHandle<()>,
}

/// How many watch a run, by what they want of it.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    pub(super) seldom: usize,
    pub(super) run: usize,
    pub(super) steps: usize,
    pub(super) messages: usize,
}

impl Watchers {
    pub(super) fn of(&mut self, interest: Interest) -> &mut usize {
        match interest {
            Interest::Seldom => &mut self.seldom,
            Interest::Now(Parts::Run) => &mut self.run,
            Interest::Now(Parts::Steps) => &mut self.steps,
            Interest::Now(Parts::Messages) => &mut self.messages,
        }
    }

    /// Those that want to know now.
    pub(super) fn now(&self) -> usize {
        self.run + self.steps + self.messages
    }

    /// What has to be read for all of them.
    pub(super) fn parts(&self) -> Parts {
        match self {
            Self { messages: 1.., .. } => Parts::Messages,
            Self { steps: 1.., .. } => Parts::Steps,
            _ => Parts::Run,
        }
    }
}

/// What a fetch gave.
#[derive(Debug, Clone)]
pub(super) struct Published {
    /// Which fetch it was, from 1.
    pub(super) number: u64,
    pub(super) result: Result<Arc<Snapshot>, Arc<Error>>,
}

impl Shared {
    /// Whoever watches these runs wants to see them as they are from now on.
    pub(super) fn wake(&self, changed: impl Fn(&Key, &Poll) -> bool) {
        let mut polls = lock(&self.polls);
        for (key, poll) in polls.iter_mut() {
            if changed(key, poll) {
                poll.wanted = poll.begun + 1;
                poll.wake.notify_one();
            }
        }
    }

    /// What is wanted of a run after the look `number`: the number of the look that somebody waits
    /// for, if anybody does, and how much of the run. `None` if nobody watches any more.
    pub(super) fn wants(&self, key: &Key, number: u64) -> Option<(Option<u64>, Parts)> {
        let mut polls = lock(&self.polls);
        let poll = polls.get_mut(key)?;
        let is_wanted = poll.wanted > number;
        poll.begun += u64::from(is_wanted);
        Some((is_wanted.then_some(poll.begun), poll.watchers.parts()))
    }

    /// Numbers a state that another replica found; `None` if somebody waits for a later one, or
    /// nobody watches any more.
    pub(super) fn number(&self, key: &Key) -> Option<u64> {
        let mut polls = lock(&self.polls);
        let poll = polls.get_mut(key)?;
        if poll.wanted > poll.begun {
            return None;
        }
        poll.begun += 1;
        Some(poll.begun)
    }

    /// Whoever waited for a look waits for the next one.
    pub(super) fn want_again(&self, key: &Key) {
        if let Some(poll) = lock(&self.polls).get_mut(key) {
            poll.wanted = poll.begun + 1;
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
