//! The shared poller.
//!
//! Must hold:
//!
//! - One poller per (thread, run, caller's identity), however many watch. Last leave and new join
//!   are decided under one lock; nothing is kept after the last one left.
//! - A joiner sees only a fetch that *started after* it joined: it reads its own writes. A thousand
//!   joiners at once cost two fetches at most.
//! - A watcher that is in no hurry ([`Interest::Seldom`]) causes a fetch each
//!   [`PollLimits::ceiling`], and none when it joins.
//! - No caller's deadline bounds the poller, and a slow watcher misses states in between, never the
//!   last.
//! - What can pass (lost connections, 5xx, 429) is borne for [`PollLimits::patience`]; what cannot
//!   (401, 403, 404) ends all watches.

use std::{
    collections::hash_map::Entry,
    hash::RandomState,
    sync::{Arc, Mutex},
};

use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Log,
    fetch::{Fetch, Pace, Snapshot},
    poller::Poller,
    polls::{Interest, Key, Poll, PollLimits, Published, Shared, Watchers, lock},
};
use crate::{
    error::Error,
    shares::{HeldBytes, Limit, Owner, Permit, Shares},
    upstream::{Caller, Client},
};

/// All pollers of one gateway.
#[derive(Debug, Clone)]
pub(super) struct PollerRegistry(Arc<Shared>);

/// A place among the watchers of a run. Dropping it leaves.
#[derive(Debug)]
pub(super) struct Subscription {
    watches: PollerRegistry,
    key: Key,
    interest: Interest,
    /// Fetches up to this one began before this watcher joined.
    seen: u64,
    published: watch::Receiver<Option<Published>>,
}

impl PollerRegistry {
    pub(super) fn new(client: Client, limits: PollLimits, log: Option<Log>) -> Self {
        let registry = Self(Arc::new(Shared {
            log,
            client,
            runs: Shares::new(Limit {
                what: "runs watched",
                max: limits.runs,
                flag: "--max-polled-runs",
            }),
            pace: Pace::new(limits.rate),
            limits,
            polls: Mutex::default(),
            routine: tokio::sync::Mutex::default(),
            slowed: Mutex::default(),
            hasher: RandomState::new(),
        }));
        if let Some((log, _)) = &registry.0.log {
            let shared = Arc::downgrade(&registry.0);
            log.on_change(Box::new(move |changed| {
                if let Some(shared) = shared.upgrade() {
                    shared.wake(|_, poll| {
                        poll.run_key
                            .as_ref()
                            .is_some_and(|it| it.as_str() == changed)
                    });
                }
            }));
        }
        registry
    }

    /// Joins the watchers of a run.
    pub(super) fn join(
        &self,
        caller: &Caller,
        thread_id: &str,
        run_id: &str,
        interest: Interest,
    ) -> Result<Subscription, Error> {
        caller.call.about(thread_id, run_id);
        let key = Key {
            thread_id: thread_id.to_owned(),
            run_id: run_id.to_owned(),
            identity: caller.identity(),
        };
        let mut polls = lock(&self.0.polls);
        let metrics = self.0.client.telemetry().metrics();
        let poll = match polls.entry(key.clone()) {
            Entry::Occupied(poll) => poll.into_mut(),
            Entry::Vacant(vacant) => {
                // The run counts to whoever began to watch it, however many join.
                let permit = self.0.runs.take(caller.owner, 1)?;
                let held = caller.held.apart()?;
                metrics.pollers.inc();
                vacant.insert(self.start(&key, caller.owner, held, permit))
            }
        };
        metrics.watchers.inc();
        *poll.watchers.of(interest) += 1;
        if interest != Interest::Seldom {
            poll.wanted = poll.begun + 1;
        }
        poll.wake.notify_one();
        let (seen, published) = (poll.begun, poll.published.clone());
        drop(polls);
        Ok(Subscription {
            watches: self.clone(),
            key,
            interest,
            seen,
            published,
        })
    }

    /// A run was changed: whoever watches it, as whoever, sees that as soon as can be.
    pub(super) fn touched(&self, thread_id: &str, run_id: &str) {
        self.0
            .wake(|key, _| key.run_id == run_id && key.thread_id == thread_id);
        if let Some((log, keys)) = &self.0.log
            && log.is_shared()
        {
            let (log, key) = (Arc::clone(log), keys.run_key(thread_id, run_id));
            tokio::spawn(async move { log.changed(&key).await });
        }
    }

    fn start(&self, key: &Key, owner: Owner, held: HeldBytes, permit: Permit) -> Poll {
        let (publish, published) = watch::channel(None);
        let wake = Arc::new(Notify::new());
        let caller = Caller {
            owner,
            held,
            ..key.identity.caller()
        };
        let lease = 2 * self.0.limits.ceiling;
        let shared_log = self.0.log.as_ref().filter(|(log, _)| log.is_shared());
        let board = shared_log.and_then(|(log, keys)| {
            log.board(&keys.poll_key(&caller, &key.thread_id, &key.run_id), lease)
        });
        let run_key = shared_log.map(|(_, keys)| keys.run_key(&key.thread_id, &key.run_id));
        let poller = Poller {
            board,
            remote: None,
            answered: 0,
            shown: None,
            shared: Arc::clone(&self.0),
            key: key.clone(),
            fetch: Fetch::new(
                self.0.client.clone(),
                caller,
                (key.thread_id.clone(), key.run_id.clone()),
                self.0.limits.step_bytes,
            ),
            wake: Arc::clone(&wake),
            publish,
            interval: self.0.limits.floor,
            failing_since: None,
        };
        let task = AbortOnDropHandle::new(tokio::spawn(poller.run()));
        Poll {
            watchers: Watchers::default(),
            begun: 0,
            wanted: 0,
            run_key,
            wake,
            published,
            _permit: permit,
            _task: task,
        }
    }
}

impl Subscription {
    /// The next state of the run. May be dropped while it waits: nothing is lost.
    pub(super) async fn next(&mut self) -> Result<Arc<Snapshot>, Arc<Error>> {
        loop {
            // The sender lives as long as there are watchers; a poller that panicked is the one
            // exception.
            if self.published.changed().await.is_err() {
                return Err(Arc::new(Error::Unusable {
                    what: "the poller has failed".to_owned(),
                    request_id: None,
                }));
            }
            let published = self.published.borrow_and_update().clone();
            let Some(Published { number, result }) = published.filter(|it| it.number > self.seen)
            else {
                continue;
            };
            self.seen = number;
            let lacks = match (&result, self.interest) {
                (Ok(snapshot), Interest::Now(parts)) => snapshot.parts() < parts,
                _ => false,
            };
            if !lacks {
                return result;
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let metrics = self.watches.0.client.telemetry().metrics();
        metrics.watchers.dec();
        let mut polls = lock(&self.watches.0.polls);
        if let Some(poll) = polls.get_mut(&self.key) {
            *poll.watchers.of(self.interest) -= 1;
            if poll.watchers.now() + poll.watchers.seldom == 0 {
                polls.remove(&self.key);
                metrics.pollers.dec();
            }
        }
    }
}
