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
    collections::{HashMap, HashSet, hash_map::Entry},
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use prost::Message as _;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;

use super::is_terminal;
use crate::{
    error::Error,
    shares::{Limit, Owner, Permit, Shares},
    upstream::{Caller, Client, Identity},
    v1::{GetRunRequest, ListRunStepsRequest, Run, RunStep, SortOrder},
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
    /// The most that the steps of one run may take, in bytes.
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

/// The most pages of steps that are read of a run: a hundred on each.
const MAX_STEP_PAGES: usize = 100;

/// A state of a run.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    pub(super) run: Box<Run>,
    /// Its steps, oldest first, if anybody asked for them and they could be read; or why they
    /// cannot be had. Neither is a reason to keep the run from those who asked for the run alone.
    pub(super) steps: Option<Result<Vec<RunStep>, Arc<Error>>>,
}

impl Snapshot {
    /// The steps, as far as they are known.
    pub(super) fn steps(&self) -> &[RunStep] {
        self.steps
            .as_ref()
            .and_then(|steps| steps.as_deref().ok())
            .unwrap_or_default()
    }
}

/// What a watcher wants of a run, and how soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interest {
    /// The run and its steps, now and as they change.
    Steps,
    /// The run, now and as it changes.
    Run,
    /// The run, at the ceiling's pace and after each write through this gateway: it waits for
    /// something else, and only must not wait in vain.
    Seldom,
}

/// All pollers of one gateway.
#[derive(Debug, Clone)]
pub(super) struct PollerRegistry(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    client: Client,
    limits: PollLimits,
    runs: Shares,
    polls: Mutex<HashMap<Key, Poll>>,
    /// When the next fetch may begin, of all. Held by the poller whose turn it is; the others wait
    /// in the order of asking.
    next_slot: tokio::sync::Mutex<Instant>,
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
    watchers: usize,
    /// Those of them that want steps.
    step_watchers: usize,
    /// Those of them that are in no hurry.
    seldom_watchers: usize,
    /// Fetches that have begun.
    begun: u64,
    /// The first fetch that somebody waits for; the poller does not sleep before it.
    wanted: u64,
    wake: Arc<Notify>,
    published: watch::Receiver<Option<Published>>,
    _permit: Permit,
    _task: AbortOnDropHandle<()>,
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
    pub(super) fn new(client: Client, limits: PollLimits) -> Self {
        Self(Arc::new(Shared {
            client,
            runs: Shares::new(Limit {
                what: "runs watched",
                max: limits.runs,
                flag: "--max-polled-runs",
            }),
            limits,
            polls: Mutex::default(),
            next_slot: tokio::sync::Mutex::new(Instant::now()),
            routine: tokio::sync::Mutex::default(),
            slowed: Mutex::default(),
            hasher: RandomState::new(),
        }))
    }

    /// Joins the watchers of a run.
    pub(super) fn join(
        &self,
        caller: &Caller,
        thread_id: &str,
        run_id: &str,
        interest: Interest,
    ) -> Result<Subscription, Error> {
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
        poll.watchers += 1;
        poll.step_watchers += usize::from(interest == Interest::Steps);
        if interest == Interest::Seldom {
            poll.seldom_watchers += 1;
        } else {
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
        let mut polls = lock(&self.0.polls);
        for (key, poll) in polls.iter_mut() {
            if key.run_id == run_id && key.thread_id == thread_id {
                poll.wanted = poll.begun + 1;
                poll.wake.notify_one();
            }
        }
    }

    fn start(&self, key: &Key, owner: Owner, permit: Permit) -> Poll {
        let (publish, published) = watch::channel(None);
        let wake = Arc::new(Notify::new());
        let poller = Poller {
            shared: Arc::clone(&self.0),
            key: key.clone(),
            caller: Caller {
                owner,
                ..key.identity.caller()
            },
            wake: Arc::clone(&wake),
            publish,
            interval: self.0.limits.floor,
            failing_since: None,
            is_stuck: AtomicBool::new(false),
        };
        let task = AbortOnDropHandle::new(tokio::spawn(poller.run()));
        Poll {
            watchers: 0,
            step_watchers: 0,
            seldom_watchers: 0,
            begun: 0,
            wanted: 0,
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
            let lacks_steps = self.interest == Interest::Steps
                && result
                    .as_ref()
                    .is_ok_and(|snapshot| snapshot.steps.is_none());
            if !lacks_steps {
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
            poll.watchers -= 1;
            poll.step_watchers -= usize::from(self.interest == Interest::Steps);
            poll.seldom_watchers -= usize::from(self.interest == Interest::Seldom);
            if poll.watchers == 0 {
                polls.remove(&self.key);
                metrics.pollers.dec();
            }
        }
    }
}

/// The task that fetches one run.
struct Poller {
    shared: Arc<Shared>,
    key: Key,
    caller: Caller,
    wake: Arc<Notify>,
    publish: watch::Sender<Option<Published>>,
    /// The time to the next fetch, where the upstream does not say.
    interval: Duration,
    failing_since: Option<Instant>,
    /// Its pages of steps do not advance, which was logged.
    is_stuck: AtomicBool,
}

impl Poller {
    async fn run(mut self) {
        let (mut number, mut pause) = (0, None);
        loop {
            self.rest(number, pause).await;
            self.turn(number).await;
            let Some((begun, steps)) = self.begin() else {
                return;
            };
            number = begun;
            let fetched = self.fetch(steps).await;
            pause = match fetched {
                Ok((snapshot, asked)) => self.succeeded(number, snapshot, asked),
                Err(error) => self.failed(number, error),
            };
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
            let mut next = self.shared.next_slot.lock().await;
            let now = Instant::now();
            if *next > now {
                sleep_until(*next).await;
            }
            let slowed = lock(&self.shared.slowed)
                .get(&self.identity_hash())
                .copied();
            let Some(until) = slowed.filter(|until| *until > Instant::now()) else {
                // Taken only now: a poller that is aborted while it waits takes nothing from the
                // others.
                *next = now.max(*next) + Duration::from_secs(1) / self.shared.limits.rate.max(1);
                return;
            };
            drop((next, routine));
            sleep_until(until).await;
        }
    }

    /// Waits for the turn of one more request, by the rate of all.
    async fn slot(&self) {
        let mut next = self.shared.next_slot.lock().await;
        let now = Instant::now();
        sleep_until(*next).await;
        *next = now.max(*next) + Duration::from_secs(1) / self.shared.limits.rate.max(1);
    }

    fn identity_hash(&self) -> u64 {
        self.shared.hasher.hash_one(&self.key.identity)
    }

    /// Numbers the fetch that begins now; `None` if nobody watches any more.
    fn begin(&self) -> Option<(u64, bool)> {
        let mut polls = lock(&self.shared.polls);
        let poll = polls.get_mut(&self.key)?;
        poll.begun += 1;
        Some((poll.begun, poll.step_watchers > 0))
    }

    /// The run, then its steps: those of a terminal run are read after it was seen to be terminal.
    /// With what the upstream asks to wait.
    async fn fetch(&self, steps: bool) -> Result<(Snapshot, Option<Duration>), Error> {
        let Key {
            thread_id, run_id, ..
        } = &self.key;
        let request = GetRunRequest {
            thread_id: thread_id.clone(),
            run_id: run_id.clone(),
        };
        let answer = self.shared.client.get_run(&self.caller, &request).await?;
        let asked = answer
            .headers
            .get("openai-poll-after-ms")
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let steps = if steps {
            Some(self.steps().await.map_err(Arc::new))
        } else {
            None
        };
        Ok((
            Snapshot {
                run: answer.message,
                steps,
            },
            asked.map(Duration::from_millis),
        ))
    }

    /// All steps of the run, each once.
    async fn steps(&self) -> Result<Vec<RunStep>, Error> {
        let mut request = ListRunStepsRequest {
            thread_id: self.key.thread_id.clone(),
            run_id: self.key.run_id.clone(),
            limit: Some(100),
            order: SortOrder::Asc.into(),
            ..ListRunStepsRequest::default()
        };
        let mut steps = Vec::new();
        let (mut seen, mut bytes) = (HashSet::new(), 0);
        for page in 0.. {
            if page == MAX_STEP_PAGES {
                return Err(Self::too_many_steps(&format!("{MAX_STEP_PAGES} pages")));
            }
            if page > 0 {
                self.slot().await;
            }
            let page = self
                .shared
                .client
                .list_run_steps(&self.caller, &request)
                .await?
                .message;
            let more = page.has_more == Some(true) && !page.data.is_empty();
            // An upstream that names no last id is asked by the last one's own.
            let last = page
                .data
                .last()
                .map(|step| step.id.clone())
                .unwrap_or_default();
            request.after = if page.last_id.is_empty() {
                last
            } else {
                page.last_id
            };
            let before = steps.len();
            let new = page
                .data
                .into_iter()
                .filter(|step| seen.insert(step.id.clone()));
            steps.extend(new);
            bytes += steps[before..]
                .iter()
                .map(RunStep::encoded_len)
                .sum::<usize>();
            if bytes > self.shared.limits.step_bytes {
                let limit = self.shared.limits.step_bytes;
                return Err(Self::too_many_steps(&format!(
                    "{limit} bytes (--max-polled-step-bytes)"
                )));
            }
            if more && steps.len() == before {
                if !self.is_stuck.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        thread_id = self.key.thread_id,
                        run_id = self.key.run_id,
                        after = request.after,
                        "the upstream's pages of steps do not advance: what is behind them is not read"
                    );
                }
                break;
            }
            if !more {
                break;
            }
        }
        Ok(steps)
    }

    fn too_many_steps(limit: &str) -> Error {
        Error::Unusable {
            what: format!("the run has steps of more than {limit}"),
            request_id: None,
        }
    }

    /// Publishes a state, and says how long to rest; `None` for until somebody wants more.
    fn succeeded(
        &mut self,
        number: u64,
        mut snapshot: Snapshot,
        asked: Option<Duration>,
    ) -> Option<Duration> {
        let borne = match &snapshot.steps {
            Some(Err(error)) => self.bear(number, error),
            _ => None,
        };
        if borne.is_some() {
            snapshot.steps = None;
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
    async fn rest(&self, number: u64, pause: Option<Duration>) {
        let (began, ceiling) = (Instant::now(), self.shared.limits.ceiling);
        loop {
            let (seldom, watchers) = match lock(&self.shared.polls).get(&self.key) {
                Some(poll) if poll.wanted <= number => (poll.seldom_watchers, poll.watchers),
                _ => return,
            };
            let pause = if seldom == watchers {
                Some(ceiling)
            } else {
                pause.or((seldom > 0).then_some(ceiling))
            };
            tokio::select! {
                () = self.wake.notified() => {}
                () = after(began, pause) => return,
            }
        }
    }

    /// Waits until a fetch after `number` is wanted.
    async fn wanted(&self, number: u64) {
        while lock(&self.shared.polls)
            .get(&self.key)
            .is_some_and(|poll| poll.wanted <= number)
        {
            self.wake.notified().await;
        }
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
