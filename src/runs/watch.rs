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
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Log,
    fetch::{Fetch, Pace, Parts, Snapshot},
    is_terminal,
    log::{self, Board, STAY, Turn},
};
use crate::{
    error::Error,
    shares::{Limit, Owner, Permit, Shares},
    upstream::{Caller, Client, Identity},
};

/// Limits of polling. [`Default`] suits most upstreams.
#[derive(Debug, Clone)]
pub struct PollLimits {
    /// The shortest time between two fetches of a run.
    pub floor: Duration,
    /// The longest time between two fetches of a run.
    pub ceiling: Duration,
    /// Fetches a second, of all runs together.
    pub rate: u32,
    /// Runs polled at a time. One more is refused.
    pub runs: usize,
    /// How long fetches may fail before watches end.
    pub patience: Duration,
    /// The most that the steps of one run may take, in bytes; its messages, the same.
    pub step_bytes: usize,
}

impl Default for PollLimits {
    fn default() -> Self {
        Self {
            floor: Duration::from_millis(250),
            ceiling: Duration::from_secs(5),
            rate: 200,
            runs: 10_000,
            patience: Duration::from_secs(60),
            step_bytes: 16 << 20,
        }
    }
}

/// The time to the second fetch of a run in the same status, where the upstream does not say.
const FIRST_INTERVAL: Duration = Duration::from_millis(500);

/// What a watcher wants of a run, and how soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interest {
    /// The run, at the ceiling's pace and after each write through this gateway: it waits for
    /// something else, and only must not wait in vain.
    Seldom,
    /// These parts, now and as they change.
    Now(Parts),
}

/// All pollers of one gateway.
#[derive(Debug, Clone)]
pub(super) struct PollerRegistry(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    client: Client,
    /// What replicas share, if there is such.
    log: Option<Log>,
    limits: PollLimits,
    runs: Shares,
    polls: Mutex<HashMap<Key, Poll>>,
    pace: Pace,
    /// Held by the one poller that waits for a slot without anybody having asked for this fetch.
    /// However many runs are watched, a new watcher, or a run that was changed, has one of those
    /// before it at most.
    routine: tokio::sync::Mutex<()>,
    /// Until when an identity was asked to wait.
    /// Under a keyed hash: it outlives the last watcher, and a credential must not.
    slowed: Mutex<HashMap<u64, Instant>>,
    hasher: RandomState,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    thread_id: String,
    run_id: String,
    identity: Identity,
}

/// One poller, as its watchers see it. Everything is read and written under the lock of
/// [`Shared::polls`].
#[derive(Debug)]
struct Poll {
    watchers: Watchers,
    /// Fetches that have begun.
    begun: u64,
    /// The first fetch that somebody waits for; the poller does not sleep before it.
    wanted: u64,
    /// What other replicas call the run.
    run_key: Option<log::Key>,
    wake: Arc<Notify>,
    published: watch::Receiver<Option<Published>>,
    _permit: Permit,
    _task: AbortOnDropHandle<()>,
}

/// How many watch a run, by what they want of it.
#[derive(Debug, Default)]
struct Watchers {
    seldom: usize,
    run: usize,
    steps: usize,
    messages: usize,
}

impl Watchers {
    fn of(&mut self, interest: Interest) -> &mut usize {
        match interest {
            Interest::Seldom => &mut self.seldom,
            Interest::Now(Parts::Run) => &mut self.run,
            Interest::Now(Parts::Steps) => &mut self.steps,
            Interest::Now(Parts::Messages) => &mut self.messages,
        }
    }

    /// Those that want to know now.
    fn now(&self) -> usize {
        self.run + self.steps + self.messages
    }

    /// What has to be read for all of them.
    fn parts(&self) -> Parts {
        match self {
            Self { messages: 1.., .. } => Parts::Messages,
            Self { steps: 1.., .. } => Parts::Steps,
            _ => Parts::Run,
        }
    }
}

/// What a fetch gave.
#[derive(Debug, Clone)]
struct Published {
    /// Which fetch it was, from 1.
    number: u64,
    result: Result<Arc<Snapshot>, Arc<Error>>,
}

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
                metrics.pollers.inc();
                vacant.insert(self.start(&key, caller.owner, permit))
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

    fn start(&self, key: &Key, owner: Owner, permit: Permit) -> Poll {
        let (publish, published) = watch::channel(None);
        let wake = Arc::new(Notify::new());
        let caller = Caller {
            owner,
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

impl Shared {
    /// Whoever watches these runs wants to see them as they are from now on.
    fn wake(&self, changed: impl Fn(&Key, &Poll) -> bool) {
        let mut polls = lock(&self.polls);
        for (key, poll) in polls.iter_mut() {
            if changed(key, poll) {
                poll.wanted = poll.begun + 1;
                poll.wake.notify_one();
            }
        }
    }
}

impl Shared {
    /// What is wanted of a run after the look `number`: the number of the look that somebody waits
    /// for, if anybody does, and how much of the run. `None` if nobody watches any more.
    fn wants(&self, key: &Key, number: u64) -> Option<(Option<u64>, Parts)> {
        let mut polls = lock(&self.polls);
        let poll = polls.get_mut(key)?;
        let is_wanted = poll.wanted > number;
        poll.begun += u64::from(is_wanted);
        Some((is_wanted.then_some(poll.begun), poll.watchers.parts()))
    }

    /// Numbers a state that another replica found; `None` if somebody waits for a later one, or
    /// nobody watches any more.
    fn number(&self, key: &Key) -> Option<u64> {
        let mut polls = lock(&self.polls);
        let poll = polls.get_mut(key)?;
        if poll.wanted > poll.begun {
            return None;
        }
        poll.begun += 1;
        Some(poll.begun)
    }

    /// Whoever waited for a look waits for the next one.
    fn again(&self, key: &Key, followed: Followed) -> Followed {
        if let Some(poll) = lock(&self.polls).get_mut(key) {
            poll.wanted = poll.begun + 1;
        }
        followed
    }
}

/// The task that fetches one run.
struct Poller {
    /// What replicas tell each other of the run, if they do.
    board: Option<Board>,
    /// What other replicas want of it.
    remote: Option<Parts>,
    /// The last of their asks that was answered.
    answered: u64,
    /// The last state of another replica that was passed on.
    shown: Option<u64>,
    shared: Arc<Shared>,
    key: Key,
    fetch: Fetch,
    wake: Arc<Notify>,
    publish: watch::Sender<Option<Published>>,
    /// The time to the next fetch, where the upstream does not say.
    interval: Duration,
    failing_since: Option<Instant>,
}

impl Poller {
    async fn run(mut self) {
        let (mut number, mut pause) = (0, None);
        loop {
            self.rest(number, pause).await;
            let asks = match self.take_turn().await {
                Turn::Theirs => match self.follow(number).await {
                    Followed::Told(told) => {
                        (number, pause) = (told, Some(Duration::ZERO));
                        continue;
                    }
                    Followed::Not => None,
                },
                Turn::Mine { asks, .. } => Some(asks),
                Turn::Alone => None,
            };
            self.turn(number).await;
            let Some((begun, parts)) = self.begin() else {
                return;
            };
            number = begun;
            let parts = parts.max(self.remote.unwrap_or(Parts::Run));
            pause = match self.fetch.fetch(parts, &self.shared.pace).await {
                Ok((snapshot, asked)) => {
                    // Before the watchers here are told: the last one may leave, and end this.
                    self.show(asks, &snapshot).await;
                    self.succeeded(number, snapshot, asked)
                }
                Err(error) => self.failed(number, error),
            };
        }
    }

    /// Whose turn it is to poll, of all replicas.
    async fn take_turn(&mut self) -> Turn {
        let turn = match &mut self.board {
            Some(board) => board.take_turn().await,
            None => Turn::Alone,
        };
        self.remote = match turn {
            Turn::Mine { wanted, .. } => wanted,
            Turn::Theirs | Turn::Alone => None,
        };
        turn
    }

    /// Tells other replicas what was found, if they want to know, but for what may be had by trying
    /// again.
    async fn show(&mut self, asks: Option<u64>, snapshot: &Snapshot) {
        let (Some(board), Some(asks), Some(_)) = (&self.board, asks, self.remote) else {
            return;
        };
        self.answered = asks;
        if snapshot.failed().is_some_and(|error| error.is_transient()) {
            let mut without = snapshot.clone();
            without.forget_failed();
            board.show(asks, &without).await;
        } else {
            board.show(asks, snapshot).await;
        }
    }

    /// Waits for what another replica finds, and passes it on.
    async fn follow(&mut self, number: u64) -> Followed {
        let Some((ask, parts)) = self.shared.wants(&self.key, number) else {
            return Followed::Told(number);
        };
        let Some(board) = &mut self.board else {
            return Followed::Not;
        };
        // Numbered before it is asked for: whoever joins from here on asks again.
        let mut asked = None;
        if let Some(told) = ask {
            let Some(ask) = board.ask(parts).await else {
                return Followed::Not;
            };
            asked = Some((ask, told));
        } else {
            board.stay(parts).await;
        }
        let patience = match asked {
            Some(_) => ANSWER,
            None => STAY.min(board.lease() / 3),
        };
        let over = Instant::now() + patience;
        loop {
            let Ok(found) = board.found().await else {
                return self.shared.again(&self.key, Followed::Not);
            };
            let news = found.filter(|found| match asked {
                Some((ask, _)) => found.asks >= ask,
                None => self.shown.is_none_or(|shown| shown != found.number),
            });
            if let Some(found) = news {
                self.shown = Some(found.number);
                let Some(snapshot) = found.snapshot else {
                    return self.shared.again(&self.key, Followed::Not);
                };
                let told = match asked {
                    Some((_, told)) => told,
                    None => match self.shared.number(&self.key) {
                        Some(told) => told,
                        // Somebody asks: what was found before is no answer.
                        None => return Followed::Told(number),
                    },
                };
                self.publish.send_replace(Some(Published {
                    number: told,
                    result: Ok(Arc::new(snapshot)),
                }));
                return Followed::Told(told);
            }
            let wanted = async {
                match asked {
                    Some(_) => std::future::pending().await,
                    None => wanted(&self.shared, &self.key, &self.wake, number).await,
                }
            };
            tokio::select! {
                () = board.more() => if asked.is_some() && board.take_turn().await != Turn::Theirs {
                    // Who was asked is gone.
                    return self.shared.again(&self.key, Followed::Told(number));
                },
                () = wanted => return Followed::Told(number),
                () = sleep_until(over) => {
                    let told = asked.map_or(number, |(_, told)| told);
                    return match asked {
                        Some(_) => self.shared.again(&self.key, Followed::Told(told)),
                        None => Followed::Told(told),
                    };
                }
            }
        }
    }

    /// Waits until the turn of the fetch after `number` has come, by the rate of all and by what
    /// this identity was asked to wait.
    async fn turn(&self, number: u64) {
        loop {
            let routine = tokio::select! {
                biased;
                () = self.wanted(number) => None,
                routine = self.shared.routine.lock() => Some(routine),
            };
            let turn = self.shared.pace.turn().await;
            let slowed = lock(&self.shared.slowed)
                .get(&self.identity_hash())
                .copied();
            let Some(until) = slowed.filter(|until| *until > Instant::now()) else {
                turn.take();
                return;
            };
            drop((turn, routine));
            sleep_until(until).await;
        }
    }

    fn identity_hash(&self) -> u64 {
        self.shared.hasher.hash_one(&self.key.identity)
    }

    /// Numbers the fetch that begins now, and says what it is to read; `None` if nobody watches any
    /// more.
    fn begin(&self) -> Option<(u64, Parts)> {
        let mut polls = lock(&self.shared.polls);
        let poll = polls.get_mut(&self.key)?;
        poll.begun += 1;
        Some((poll.begun, poll.watchers.parts()))
    }

    /// Publishes a state, and says how long to rest; `None` for until somebody wants more.
    fn succeeded(
        &mut self,
        number: u64,
        mut snapshot: Snapshot,
        asked: Option<Duration>,
    ) -> Option<Duration> {
        let failed = snapshot.failed().cloned();
        let borne = failed.and_then(|error| self.bear(number, &error));
        if borne.is_some() {
            snapshot.forget_failed();
        } else {
            self.failing_since = None;
        }
        let before = self
            .publish
            .borrow()
            .as_ref()
            .and_then(|it| Some(it.result.as_ref().ok()?.run.status()));
        let status = snapshot.run.status();
        self.publish.send_replace(Some(Published {
            number,
            result: Ok(Arc::new(snapshot)),
        }));
        if borne.is_some() || is_terminal(status) {
            return borne;
        }
        let limits = &self.shared.limits;
        // While nothing happens the pauses grow.
        self.interval = if before == Some(status) {
            self.interval * 3 / 2
        } else {
            FIRST_INTERVAL
        };
        self.interval = self.interval.clamp(limits.floor, limits.ceiling);
        Some(asked.map_or_else(
            || self.jittered(number),
            |asked| asked.clamp(limits.floor, limits.ceiling),
        ))
    }

    /// Bears a failure or publishes it, and says how long to rest.
    fn failed(&mut self, number: u64, error: Error) -> Option<Duration> {
        let borne = self.bear(number, &error);
        if borne.is_none() {
            // Who joins from here on finds a poller as patient as a new one.
            self.failing_since = None;
            self.publish.send_replace(Some(Published {
                number,
                result: Err(Arc::new(error)),
            }));
        }
        borne
    }

    /// How long to rest before what failed is tried again; `None` if it is not to be borne any
    /// longer.
    fn bear(&mut self, number: u64, error: &Error) -> Option<Duration> {
        let limits = &self.shared.limits;
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        // What does not pass ends these watches, and is no reason to keep others waiting.
        if let Some(delay) = error.retry_delay().filter(|_| error.is_transient()) {
            let until = Instant::now() + delay.min(limits.patience);
            let mut slowed = lock(&self.shared.slowed);
            slowed.retain(|_, until| *until > Instant::now());
            slowed.insert(self.identity_hash(), until);
        }
        if !error.is_transient() || since.elapsed() >= limits.patience {
            return None;
        }
        tracing::debug!(error = %error.log(), "a poll failed; trying again");
        self.interval = (self.interval * 2).clamp(limits.floor, limits.ceiling);
        Some(self.jittered(number))
    }

    /// The interval, up to a quarter shorter, so that pollers that began together do not stay
    /// together.
    fn jittered(&self, number: u64) -> Duration {
        let random = self.shared.hasher.hash_one((&self.key, number)) % 256;
        let parts = 1024 - u32::try_from(random).unwrap_or_default();
        (self.interval * parts / 1024).max(self.shared.limits.floor)
    }

    /// Waits for `pause` (for ever if `None`), or until a fetch is wanted that has not begun. Those
    /// in no hurry wait for the ceiling, and never for ever.
    async fn rest(&mut self, number: u64, pause: Option<Duration>) {
        let (began, ceiling) = (Instant::now(), self.shared.limits.ceiling);
        let remote = usize::from(self.remote.is_some());
        loop {
            let (seldom, now) = match lock(&self.shared.polls).get(&self.key) {
                Some(poll) if poll.wanted <= number => {
                    (poll.watchers.seldom, poll.watchers.now() + remote)
                }
                _ => return,
            };
            let pause = if now == 0 {
                Some(ceiling)
            } else {
                pause.or((seldom > 0).then_some(ceiling))
            };
            let asked = async {
                match &mut self.board {
                    Some(board) => board.more().await,
                    None => std::future::pending().await,
                }
            };
            let is_asked = tokio::select! {
                () = self.wake.notified() => false,
                () = after(began, pause) => return,
                () = asked => true,
            };
            if is_asked
                && let Turn::Mine { asks, .. } = self.take_turn().await
                && asks > self.answered
            {
                return;
            }
        }
    }

    /// Waits until a fetch after `number` is wanted.
    async fn wanted(&self, number: u64) {
        wanted(&self.shared, &self.key, &self.wake, number).await;
    }
}

/// What became of a look that another replica was to take.
enum Followed {
    /// It was passed on under this number, or there is nothing new after it.
    Told(u64),
    /// This replica has to look for itself.
    Not,
}

/// How long another replica is waited for that was asked to look.
const ANSWER: Duration = Duration::from_secs(2);

/// Waits until a fetch after `number` is wanted.
async fn wanted(shared: &Shared, key: &Key, wake: &Notify, number: u64) {
    while lock(&shared.polls)
        .get(key)
        .is_some_and(|poll| poll.wanted <= number)
    {
        wake.notified().await;
    }
}

/// Waits until `pause` has passed since `began`; for ever if `None`.
async fn after(began: Instant, pause: Option<Duration>) {
    match pause {
        Some(pause) => sleep_until(began + pause).await,
        None => std::future::pending().await,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
