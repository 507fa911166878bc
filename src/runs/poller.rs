//! The task that polls one run, for all who watch it.
//!
//! Must hold: what can pass is borne for [`PollLimits::patience`]; where replicas share a store, one
//! of them polls, and the others pass on what it finds.
//!
//! [`PollLimits::patience`]: super::PollLimits::patience

use std::{hash::BuildHasher as _, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

use super::{
    fetch::{Fetch, Parts, Snapshot, may_be_had_later},
    log::{Board, PollTurn, STAY},
    polls::{Key, Published, Shared, lock},
};
use crate::error::Error;

/// The time to the second fetch of a run in the same status, where the upstream does not say.
const FIRST_INTERVAL: Duration = Duration::from_millis(500);

/// The task that fetches one run.
pub(super) struct Poller {
    /// What replicas tell each other of the run, if they do.
    pub(super) board: Option<Board>,
    /// What other replicas want of it.
    pub(super) remote: Option<Parts>,
    /// The last of their asks that was answered.
    pub(super) answered: u64,
    /// The last state of another replica that was passed on.
    pub(super) shown: Option<u64>,
    pub(super) shared: Arc<Shared>,
    pub(super) key: Key,
    pub(super) fetch: Fetch,
    pub(super) wake: Arc<Notify>,
    pub(super) publish: watch::Sender<Option<Published>>,
    /// The time to the next fetch, where the upstream does not say.
    pub(super) interval: Duration,
    pub(super) failing_since: Option<Instant>,
}

impl Poller {
    pub(super) async fn run(mut self) {
        let (mut number, mut pause) = (0, None);
        loop {
            self.rest(number, pause).await;
            let asks = match self.take_turn().await {
                PollTurn::Theirs => match self.follow(number).await {
                    Followed::Told(told) => {
                        (number, pause) = (told, Some(Duration::ZERO));
                        continue;
                    }
                    Followed::Not => None,
                },
                PollTurn::Mine { asks, .. } => Some(asks),
                PollTurn::Alone => None,
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
    async fn take_turn(&mut self) -> PollTurn {
        let turn = match &mut self.board {
            Some(board) => board.take_turn().await,
            None => PollTurn::Alone,
        };
        self.remote = match turn {
            PollTurn::Mine { wanted, .. } => wanted,
            PollTurn::Theirs | PollTurn::Alone => None,
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
        if snapshot.failed().is_some_and(may_be_had_later) {
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
                self.shared.want_again(&self.key);
                return Followed::Not;
            };
            let news = found.filter(|found| match asked {
                Some((ask, _)) => found.asks >= ask,
                None => self.shown.is_none_or(|shown| shown != found.number),
            });
            if let Some(found) = news {
                self.shown = Some(found.number);
                let Some(snapshot) = found.snapshot else {
                    self.shared.want_again(&self.key);
                    return Followed::Not;
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
                () = board.more() => if asked.is_some() && board.take_turn().await != PollTurn::Theirs {
                    // Who was asked is gone.
                    self.shared.want_again(&self.key);
                    return Followed::Told(number);
                },
                () = wanted => return Followed::Told(number),
                () = sleep_until(over) => {
                    let Some((_, told)) = asked else {
                        return Followed::Told(number);
                    };
                    self.shared.want_again(&self.key);
                    return Followed::Told(told);
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
        let failed = snapshot.failed().filter(|error| may_be_had_later(error));
        let borne = failed.cloned().and_then(|error| self.bear(&error));
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
        if borne.is_some() || status.is_terminal() {
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
            || self.jittered(),
            |asked| asked.clamp(limits.floor, limits.ceiling),
        ))
    }

    /// Bears a failure or publishes it, and says how long to rest.
    fn failed(&mut self, number: u64, error: Error) -> Option<Duration> {
        let borne = self.bear(&error);
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
    fn bear(&mut self, error: &Error) -> Option<Duration> {
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
        Some(self.jittered())
    }

    /// The interval, up to a quarter shorter, so that pollers that began together do not stay
    /// together.
    fn jittered(&self) -> Duration {
        let interval = self.interval.mul_f64(1.0 - fastrand::f64() / 4.0);
        interval.max(self.shared.limits.floor)
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
                && let PollTurn::Mine { asks, .. } = self.take_turn().await
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
