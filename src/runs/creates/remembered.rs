//! The creates that this replica remembers by their `request_id`.
//!
//! Must hold:
//!
//! - Of calls with one `request_id` that are under way together, one creates; the others get what
//!   it made, or its error.
//! - What was made is remembered for [`REMEMBERED`] after it was made, and so is a thread that waits
//!   for its run. There are so many at most (`--max-request-ids`): of those that are done the oldest
//!   is forgotten, and if none is done, one more is refused.
//! - No credential is held: whose an id is, is a keyed hash.
//!
//! What replicas tell each other of a create is in `replicas.rs`.

use std::{
    any::Any,
    collections::{HashMap, VecDeque, hash_map::Entry as Slot},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::busy::Queued;
use crate::{
    error::Error,
    runs::{
        Log,
        log::{EventLog, Key, Keys, SharedCreate},
    },
    shares::Limit,
    upstream::{Caller, CreateMark},
};

/// How long what was made is remembered.
const REMEMBERED: Duration = Duration::from_secs(10 * 60);

/// What a create made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ids {
    /// The thread that it is on; empty if it is on none.
    pub(in crate::runs) thread_id: String,
    /// The resource.
    pub(in crate::runs) id: String,
}

/// What the calls have that joined a create.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    pub(super) ids: Ids,
    /// The answer, if it can be given more than once.
    pub(super) answer: Option<Arc<dyn Any + Send + Sync>>,
}

type Outcome = Option<Result<Made, Arc<Error>>>;

/// All creates that are remembered. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::runs) struct Remembered {
    shared: Arc<Mutex<Shared>>,
    /// What replicas share, if they share anything.
    log: Option<Arc<dyn EventLog>>,
    keys: Keys,
    max: usize,
}

#[derive(Debug, Default)]
struct Shared {
    entries: HashMap<Key, Entry>,
    /// Those that are not under way, in the order in which they came to be so.
    settled: VecDeque<(Instant, Key)>,
}

#[derive(Debug)]
struct Entry {
    fingerprint: String,
    state: State,
}

#[derive(Debug)]
enum State {
    /// A task is at it.
    Pending(watch::Sender<Outcome>),
    /// Done.
    Done(Ids),
    /// Not done as far as is known; it has a thread already.
    Begun(String),
}

/// What a call is that comes with a `request_id`.
pub(super) enum Joined {
    /// The first: it creates, and what becomes of it is told to all.
    First(Box<Making>, Joiner),
    /// One of several.
    Later(Joiner),
    /// Late: it was made before.
    Late(Ids),
}

/// Waits for what another call makes.
#[derive(Debug)]
pub(super) struct Joiner(watch::Receiver<Outcome>);

impl Joiner {
    /// What was made.
    pub(super) async fn made(&mut self) -> Result<Made, Error> {
        let outcome = self.0.wait_for(Option::is_some).await;
        let outcome = outcome.ok().and_then(|outcome| outcome.clone());
        outcome.map_or_else(
            || Err(super::aborted()),
            |outcome| outcome.map_err(Error::shared),
        )
    }
}

impl Remembered {
    pub(in crate::runs) fn new(max: usize, log: Option<&Log>) -> Self {
        let shared = log.filter(|(log, _)| log.is_shared()).cloned();
        let (log, keys) =
            shared.map_or_else(|| (None, Keys::random()), |(log, keys)| (Some(log), keys));
        Self {
            shared: Arc::default(),
            log,
            keys,
            max,
        }
    }

    /// Joins the create that this mark names.
    pub(super) fn join(&self, caller: &Caller, mark: &CreateMark) -> Result<Joined, Error> {
        let key = self.keys.create_key(caller, mark.owner());
        let mut shared = self.lock();
        shared.forget(self.max);
        let is_full = shared.entries.len() >= self.max;
        let Shared { entries, settled } = &mut *shared;
        let begun = match entries.entry(key.clone()) {
            Slot::Vacant(_) if is_full => {
                return Err(Error::Overloaded(Limit {
                    what: "creates with a request_id",
                    max: self.max,
                    flag: "--max-request-ids",
                }));
            }
            Slot::Vacant(_) => None,
            Slot::Occupied(entry) => {
                let entry = entry.get();
                if entry.fingerprint != mark.fingerprint() {
                    return Err(Error::RequestIdUsed);
                }
                match &entry.state {
                    State::Pending(outcome) => {
                        return Ok(Joined::Later(Joiner(outcome.subscribe())));
                    }
                    State::Done(ids) => return Ok(Joined::Late(ids.clone())),
                    State::Begun(thread_id) => Some(thread_id.clone()),
                }
            }
        };
        if begun.is_some() {
            settled.retain(|(_, it)| *it != key);
        }
        let (outcome, joiner) = watch::channel(None);
        let entry = Entry {
            fingerprint: mark.fingerprint().to_owned(),
            state: State::Pending(outcome.clone()),
        };
        entries.insert(key.clone(), entry);
        drop(shared);
        let log = self.log.as_ref();
        let making = Making {
            remembered: self.clone(),
            shared: log.and_then(|log| log.create(&key, mark.fingerprint())),
            queued: None,
            has_lost_turn: false,
            key,
            outcome,
            thread_id: begun,
            is_over: false,
        };
        Ok(Joined::First(Box::new(making), Joiner(joiner)))
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Forgets what is old, and the oldest if there are too many.
    fn forget(&mut self, max: usize) {
        while let Some((since, key)) = self.settled.front() {
            if since.elapsed() < REMEMBERED && self.entries.len() < max {
                break;
            }
            self.entries.remove(key);
            self.settled.pop_front();
        }
    }
}

/// A create under way. Dropping it without an outcome tells the others that it failed.
pub(in crate::runs) struct Making {
    remembered: Remembered,
    /// What replicas tell each other of it. Its drop lets others begin.
    pub(super) shared: Option<SharedCreate>,
    /// Its place among those that wait for its thread.
    pub(super) queued: Option<Queued>,
    /// Another replica has begun meanwhile.
    pub(super) has_lost_turn: bool,
    key: Key,
    outcome: watch::Sender<Outcome>,
    thread_id: Option<String>,
    is_over: bool,
}

impl Making {
    /// The thread that was made for it before.
    pub(super) fn thread_id(&self) -> Option<&str> {
        self.thread_id.as_deref()
    }

    /// This thread was made for it.
    pub(super) fn has_thread(&mut self, thread_id: &str) {
        self.thread_id = Some(thread_id.to_owned());
    }

    /// Waits until nobody waits for the outcome any more. From then on it is not remembered, and
    /// nothing may be made: another call with the same id begins anew.
    pub(super) async fn disconnect(&mut self) {
        loop {
            self.outcome.closed().await;
            let mut shared = self.remembered.lock();
            if self.outcome.receiver_count() == 0 {
                self.leave(&mut shared);
                drop(shared);
                self.is_over = true;
                return;
            }
        }
    }

    /// It is over: tells whoever waits, and remembers what was made. Gives what other replicas are
    /// to be told.
    pub(super) fn settle(mut self, outcome: Result<Made, Error>) -> Option<(SharedCreate, Ids)> {
        let made = outcome.as_ref().ok().map(|made| made.ids.clone());
        let mut shared = self.remembered.lock();
        if !self.is_over {
            match &outcome {
                Ok(made) => self.remember(&mut shared, State::Done(made.ids.clone())),
                Err(_) => self.leave(&mut shared),
            }
        }
        drop(shared);
        self.is_over = true;
        self.outcome.send_replace(Some(outcome.map_err(Arc::new)));
        self.shared.take().zip(made)
    }

    /// Nothing was made but maybe a thread.
    fn leave(&self, shared: &mut Shared) {
        match &self.thread_id {
            Some(thread_id) => self.remember(shared, State::Begun(thread_id.clone())),
            None => _ = shared.entries.remove(&self.key),
        }
    }

    fn remember(&self, shared: &mut Shared, state: State) {
        if let Some(entry) = shared.entries.get_mut(&self.key) {
            entry.state = state;
            let since = (Instant::now(), self.key.clone());
            shared.settled.push_back(since);
        }
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        if !self.is_over {
            let remembered = self.remembered.clone();
            self.leave(&mut remembered.lock());
        }
    }
}
