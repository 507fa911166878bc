//! Threads that are busy: what a create does when the thread has an active run.
//!
//! Must hold:
//!
//! - The upstream is the arbiter: a create is tried, and only what it says counts. Nothing is locked
//!   there or here.
//! - Creates that wait come one after the other, in the order in which they came, for each thread
//!   and caller. A permit to wait is given back by its drop.
//! - A run is cancelled at most once by a create, and only the one that was found active.
//! - No wait is without an end: a run that requires action is waited for
//!   [`CreateLimits::action_wait`](super::CreateLimits::action_wait), any other as long as a wait
//!   may take.
//! - The active run is followed by the shared poller, however many wait for it.

use std::{
    collections::{HashMap, hash_map::Entry},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use prometheus::IntGauge;
use tokio::{
    sync::OwnedMutexGuard,
    task::coop::unconstrained,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    error::Error,
    runs::{
        Streams,
        fetch::{Parts, Snapshot},
        polls::Interest,
        watch::Subscription,
    },
    shares::Limit,
    upstream::{Caller, Identity},
    v1::{ActiveRunPolicy, CancelRunRequest, ListRunsRequest, RunStatus, SortOrder},
};

/// As many runs of a thread are looked at for the active one.
const LOOKED_AT: i32 = 20;

/// Pauses before a create is tried again whose thread is busy by no run that can be seen.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// The queues of all threads that somebody waits for. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(in crate::runs) struct Queues(Arc<Mutex<HashMap<Key, Queue>>>);

type Key = (String, Identity);

/// The run that is active for all that is known, if any. The create that holds the lock is at work;
/// tokio's mutex is given to those that wait in their order.
type Active = Arc<tokio::sync::Mutex<Option<String>>>;

#[derive(Debug)]
struct Queue {
    active: Active,
    /// Those that wait, and the one that is at work.
    members: usize,
}

/// A permit to wait in a queue, and to be at work, until it is dropped.
struct QueuePermit {
    queues: Queues,
    key: Key,
    active: Active,
}

/// A place in the queue of a thread, in the order in which places were taken.
pub(super) struct Queued {
    turn: QueuedTurn,
    permit: QueuePermit,
}

enum QueuedTurn {
    Now(OwnedMutexGuard<Option<String>>),
    /// Its place is kept, however late it is polled.
    Later(Pin<Box<dyn Future<Output = OwnedMutexGuard<Option<String>>> + Send>>),
}

impl Queued {
    fn new(permit: QueuePermit) -> Self {
        let active = Arc::clone(&permit.active);
        // The first poll is what takes the place.
        let mut turn: Pin<Box<dyn Future<Output = _> + Send>> =
            Box::pin(unconstrained(active.lock_owned()));
        let now = turn.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let turn = match now {
            Poll::Ready(active) => QueuedTurn::Now(active),
            Poll::Pending => QueuedTurn::Later(turn),
        };
        Self { turn, permit }
    }
}

/// The turn of a create. It is over before its permit is given back.
struct QueueTurn {
    active: OwnedMutexGuard<Option<String>>,
    _permit: QueuePermit,
}

impl Queues {
    fn enter(&self, key: Key, max: usize) -> Result<QueuePermit, Error> {
        let mut queues = self.lock();
        let queue = match queues.entry(key.clone()) {
            Entry::Occupied(queue) => queue.into_mut(),
            Entry::Vacant(vacant) => vacant.insert(Queue {
                active: Arc::default(),
                members: 0,
            }),
        };
        if queue.members > max {
            return Err(Error::Overloaded(Limit {
                what: "creates that wait for the thread's active run",
                max,
                flag: "--active-run-queue",
            }));
        }
        queue.members += 1;
        let active = Arc::clone(&queue.active);
        drop(queues);
        Ok(QueuePermit {
            queues: self.clone(),
            key,
            active,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Queue>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for QueuePermit {
    fn drop(&mut self) {
        let mut queues = self.queues.lock();
        if let Entry::Occupied(mut queue) = queues.entry(self.key.clone()) {
            queue.get_mut().members -= 1;
            if queue.get().members == 0 {
                queue.remove();
            }
        }
    }
}

/// A create that waits is counted until this is dropped.
struct Waiting(IntGauge);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Streams {
    /// A place for a create on this thread, if it is one that waits.
    pub(super) fn enqueue(
        &self,
        caller: &Caller,
        thread_id: &str,
        policy: ActiveRunPolicy,
    ) -> Result<Option<Queued>, Error> {
        if policy != ActiveRunPolicy::Wait {
            return Ok(None);
        }
        let key = (thread_id.to_owned(), caller.identity());
        let max = self.limits.creates.active_run_queue;
        self.queues.enter(key, max).map(Queued::new).map(Some)
    }
}

/// One create on a thread that may be busy.
pub(super) struct Busy<'a> {
    streams: &'a Streams,
    caller: &'a Caller,
    thread_id: &'a str,
    policy: ActiveRunPolicy,
    /// When it is over with waiting.
    until: Instant,
    pause: Duration,
    cancelled: bool,
    /// It is counted among those that have waited.
    has_waited: bool,
    /// Its turn, if it is one that waits.
    turn: Option<QueueTurn>,
}

impl<'a> Busy<'a> {
    /// Waits for its turn, if the create has a place, and for the run that the one before it has
    /// made.
    pub(super) async fn begin(
        streams: &'a Streams,
        caller: &'a Caller,
        thread_id: &'a str,
        policy: ActiveRunPolicy,
        queued: Option<Queued>,
    ) -> Result<Self, Error> {
        let mut busy = Self {
            streams,
            caller,
            thread_id,
            policy,
            until: Instant::now() + streams.limits.wait,
            pause: FIRST_PAUSE,
            cancelled: false,
            has_waited: false,
            turn: None,
        };
        let Some(Queued { turn, permit }) = queued else {
            return Ok(busy);
        };
        let active = match turn {
            QueuedTurn::Now(active) => active,
            QueuedTurn::Later(active) => {
                let _waiting = busy.waits();
                timeout_at(busy.until, active).await.map_err(|_| {
                    let what = "others that came first were waited for";
                    busy.in_vain("", what, streams.limits.wait, "--max-wait")
                })?
            }
        };
        let before = active.clone();
        busy.turn = Some(QueueTurn {
            active,
            _permit: permit,
        });
        if let Some(run_id) = before {
            let _waiting = busy.waits();
            if let Some((watch, state)) = busy.first_state(&run_id).await? {
                busy.follow(watch, state).await?;
            }
            busy.knows(None);
        }
        Ok(busy)
    }

    /// What is known of the run that is active now, for those that come next.
    pub(super) fn knows(&mut self, run_id: Option<&str>) {
        if let Some(turn) = &mut self.turn {
            *turn.active = run_id.map(str::to_owned);
        }
    }

    /// The create was refused since a run is active. Returns when it is to be tried again.
    ///
    /// # Errors
    ///
    /// It is not to be tried again, and why.
    pub(super) async fn wait(&mut self, refused: Error) -> Result<(), Error> {
        let gives_up = match self.policy {
            ActiveRunPolicy::Wait => false,
            ActiveRunPolicy::Cancel => self.cancelled,
            ActiveRunPolicy::Reject | ActiveRunPolicy::Unspecified => true,
        };
        if gives_up {
            return Err(refused);
        }
        let _waiting = self.waits();
        match self.active(&refused).await? {
            Some((watch, state)) => {
                self.pause = FIRST_PAUSE;
                self.follow(watch, state).await
            }
            // It has just ended, or cannot be seen yet.
            None if Instant::now() + self.pause < self.until => {
                sleep(self.pause).await;
                self.pause = (self.pause * 2).min(MAX_PAUSE);
                Ok(())
            }
            None => Err(refused),
        }
    }

    /// It waits until this is dropped.
    fn waits(&mut self) -> Waiting {
        let metrics = &self.streams.client.telemetry().metrics().creates;
        if !std::mem::replace(&mut self.has_waited, true) {
            metrics.waited.inc();
        }
        metrics.waiting.inc();
        Waiting(metrics.waiting.clone())
    }

    /// The thread's active run: the one that the refusal names, or else the newest that is listed.
    async fn active(
        &self,
        refused: &Error,
    ) -> Result<Option<(Subscription, Arc<Snapshot>)>, Error> {
        if let Some(named) = refused.named_run()
            && let Some(active) = self.first_state(named).await?
        {
            return Ok(Some(active).filter(|(_, state)| !state.run.status().is_terminal()));
        }
        let request = ListRunsRequest {
            thread_id: self.thread_id.to_owned(),
            limit: Some(LOOKED_AT),
            order: SortOrder::Desc.into(),
            ..ListRunsRequest::default()
        };
        let runs = self.streams.client.list_runs(self.caller, &request).await?;
        let mut runs = runs.message.data.into_iter();
        match runs.find(|run| !run.status().is_terminal()) {
            Some(active) => self.first_state(&active.id).await,
            None => Ok(None),
        }
    }

    /// Begins to follow a run; `None` if there is no such run.
    async fn first_state(
        &self,
        run_id: &str,
    ) -> Result<Option<(Subscription, Arc<Snapshot>)>, Error> {
        let interest = Interest::Now(Parts::Run);
        let watches = &self.streams.watches;
        let mut watch = watches.join(self.caller, self.thread_id, run_id, interest)?;
        match watch.next().await {
            Ok(state) => Ok(Some((watch, state))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(Error::shared(error)),
        }
    }

    /// Follows a run to its end.
    async fn follow(
        &mut self,
        mut watch: Subscription,
        mut state: Arc<Snapshot>,
    ) -> Result<(), Error> {
        let action_wait = self.streams.limits.creates.action_wait;
        let mut action_until = None;
        loop {
            let status = state.run.status();
            if status.is_terminal() {
                return Ok(());
            }
            if self.policy == ActiveRunPolicy::Cancel && !self.cancelled {
                self.cancel(&state.run.id).await?;
            }
            if status != RunStatus::RequiresAction {
                action_until = None;
            } else if action_until.is_none() {
                action_until = Some(Instant::now() + action_wait);
            }
            let until = action_until.map_or(self.until, |until| until.min(self.until));
            match timeout_at(until, watch.next()).await {
                Ok(Ok(next)) => state = next,
                Ok(Err(error)) if error.is_not_found() => return Ok(()),
                Ok(Err(error)) => return Err(Error::shared(error)),
                Err(_) => {
                    let (what, limit, flag) = if until == self.until {
                        ("it was waited for", self.streams.limits.wait, "--max-wait")
                    } else {
                        let what = "it requires action, and was waited for";
                        (what, action_wait, "--active-run-action-wait")
                    };
                    return Err(self.in_vain(&state.run.id, what, limit, flag));
                }
            }
        }
    }

    /// Cancels the run that was found active, and no other one later.
    async fn cancel(&mut self, run_id: &str) -> Result<(), Error> {
        self.cancelled = true;
        let request = CancelRunRequest {
            thread_id: self.thread_id.to_owned(),
            run_id: run_id.to_owned(),
        };
        let cancelled = self.streams.client.cancel_run(self.caller, &request).await;
        self.streams.touched(&request.thread_id, &request.run_id);
        match cancelled {
            // It has ended meanwhile, or somebody else has cancelled it.
            Err(error) if !error.is_state_conflict() => Err(error),
            _ => Ok(()),
        }
    }

    fn in_vain(&self, run_id: &str, what: &str, limit: Duration, flag: &str) -> Error {
        Error::ThreadBusy {
            thread_id: self.thread_id.to_owned(),
            run_id: run_id.to_owned(),
            why: format!("{what} for {limit:?} ({flag})"),
        }
    }
}
