//! How many upstream requests there may be at a time, and whose turn it is.
//!
//! Must hold: load is shed, never piled up. Requests in flight, requests that wait, and the time
//! that they wait are bounded; what exceeds a bound is refused at once. And one owner's flood
//! leaves others served: [`Ledger`] says who may have a permit, and who may wait for one. The queue
//! is served owner by owner.
//!
//! A create or a submit that has been sent is work for the upstream whether or not its caller
//! waits. Its place is kept for a while after the caller has left ([`RequestLimits::abandoned`]), so
//! that whoever cancels calls as fast as they are made cannot begin runs without bound.
//!
//! A place is also a place on a connection: over HTTP/2 all requests of a client share one, and
//! beyond the peer's stream limit (100 or more, as HTTP/2 recommends) they would queue inside the
//! client, where nothing bounds or sheds them. So there are as many clients as it takes
//! ([`RequestLimits::connection_groups`]), and a request goes to the first that has room. Where the
//! upstream speaks HTTP/1.1 that changes nothing.
//!
//! Why not a semaphore: it serves first come, first served, and the flood came first.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use clap::Args;
use prometheus::IntGauge;
use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{sleep, timeout},
};

use crate::{
    error::{Error, Idempotency},
    setting::{defaults, some, time},
    shares::{Ledger, Limit, Owner},
};

/// Limits of upstream requests. [`Default`] suits most upstreams.
#[derive(Debug, Clone, Args)]
pub struct RequestLimits {
    /// Upstream requests in flight; one more waits.
    ///
    /// A stream counts until its head is there, a request until its answer is.
    #[arg(id = "max-upstream-requests", long, default_value = "512", value_parser = places)]
    pub requests: usize,

    /// Upstream requests in flight on one HTTP/2 connection. At most what the upstream allows.
    #[arg(id = "max-requests-per-upstream-connection", long, default_value = "100", value_parser = places)]
    pub per_connection: usize,

    /// Upstream requests that wait for their turn; one more is refused.
    #[arg(id = "max-upstream-queue", long, default_value = "1024")]
    pub queue: usize,

    /// How long an upstream request waits for its turn before it is refused.
    #[arg(id = "upstream-queue-timeout", long, default_value = "5s", value_parser = time)]
    pub wait: Duration,

    /// How long a create or a submit keeps its place after its caller has left.
    ///
    /// The upstream goes on with it. Without that, calls that are cancelled as soon as they are made
    /// would reach the upstream without any bound; with it, as many a second as there are places.
    #[arg(id = "abandoned-write-hold", long, default_value = "1s", value_parser = time)]
    pub abandoned: Duration,
}

impl Default for RequestLimits {
    fn default() -> Self {
        defaults()
    }
}

/// A number of places: a semaphore of as many is made.
fn places(text: &str) -> Result<usize, String> {
    const MAX: usize = 65_536;
    match some(text)? {
        places @ 1..=MAX => Ok(places),
        _ => Err(format!("it is above {MAX}")),
    }
}

impl RequestLimits {
    /// How many clients it takes.
    pub(super) fn connection_groups(&self) -> usize {
        self.requests.div_ceil(self.per_connection.max(1)).max(1)
    }
}

/// Gives out places for upstream requests.
#[derive(Debug, Clone)]
pub(super) struct Admission(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limits: RequestLimits,
    state: Mutex<State>,
    /// How many wait, for the metrics.
    queued: IntGauge,
}

#[derive(Debug)]
struct State {
    running: Ledger,
    waiting: Ledger,
    /// Requests on each client.
    connection_groups: Vec<usize>,
    /// Those that wait, by owner.
    queues: BTreeMap<Owner, VecDeque<(u64, oneshot::Sender<RequestPermit>)>>,
    /// The owners that wait, in the order of their turns.
    turns: VecDeque<Owner>,
    /// Numbers those that wait.
    next: u64,
}

/// A place for one upstream request, until it is dropped.
#[derive(Debug)]
pub(super) struct RequestPermit {
    shared: Arc<Shared>,
    owner: Owner,
    /// The client to send it by.
    pub(super) connection_group: usize,
    /// A write is under way by it.
    pending: bool,
}

impl Admission {
    pub(super) fn new(limits: RequestLimits, queued: IntGauge) -> Self {
        let state = State {
            running: Ledger::new(limits.requests),
            waiting: Ledger::new(limits.queue),
            connection_groups: vec![0; limits.connection_groups()],
            queues: BTreeMap::new(),
            turns: VecDeque::new(),
            next: 0,
        };
        Self(Arc::new(Shared {
            limits,
            state: Mutex::new(state),
            queued,
        }))
    }

    /// Waits for a place.
    pub(super) async fn enter(&self, owner: Owner) -> Result<RequestPermit, Error> {
        let (shared, limits) = (&self.0, &self.0.limits);
        let refused = Limit {
            what: "upstream requests",
            max: limits.requests,
            flag: "--max-upstream-requests",
        };
        let (waiter, mut permit) = {
            let mut state = shared.lock();
            let waits = state.queues.contains_key(&owner);
            // Who waits already goes first.
            if !waits && state.running.admits(owner, 1) {
                return Ok(shared.take(&mut state, owner));
            }
            if !state.waiting.admits(owner, 1) {
                let queue = Limit {
                    max: limits.queue,
                    flag: "--max-upstream-queue",
                    ..refused
                };
                return Err(queue.into());
            }
            state.waiting.take(owner, 1);
            let number = state.next;
            state.next += 1;
            let (send, permit) = oneshot::channel();
            let queue = state.queues.entry(owner).or_default();
            queue.push_back((number, send));
            if !waits {
                state.turns.push_back(owner);
            }
            shared.queued.inc();
            (
                Waiter {
                    shared,
                    owner,
                    number,
                },
                permit,
            )
        };
        let given = timeout(limits.wait, &mut permit).await;
        drop(waiter);
        // A place that was given just now is not let go unused.
        let given = given.ok().and_then(Result::ok);
        given
            .or_else(|| permit.try_recv().ok())
            .ok_or_else(|| refused.into())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>, state: &mut State, owner: Owner) -> RequestPermit {
        let connection_group = state
            .connection_groups
            .iter()
            .position(|running| *running < self.limits.per_connection)
            .unwrap_or_default();
        state.connection_groups[connection_group] += 1;
        state.running.take(owner, 1);
        RequestPermit {
            shared: Arc::clone(self),
            owner,
            connection_group,
            pending: false,
        }
    }

    fn take_back(self: &Arc<Self>, owner: Owner, connection_group: usize) {
        let given = {
            let mut state = self.lock();
            state.connection_groups[connection_group] -= 1;
            state.running.give_back(owner, 1);
            self.give(&mut state)
        };
        for (waiter, permit) in given {
            // One that has just left gives its place back by dropping it.
            let _ = waiter.send(permit);
        }
    }

    /// Gives what is free to those that wait, one to each owner in turn. Returns what is to be
    /// sent when the lock is let go.
    fn give(
        self: &Arc<Self>,
        state: &mut State,
    ) -> Vec<(oneshot::Sender<RequestPermit>, RequestPermit)> {
        let mut given = Vec::new();
        let mut passed_over = 0;
        while passed_over < state.turns.len() {
            let Some(owner) = state.turns.pop_front() else {
                break;
            };
            if !state.running.admits(owner, 1) {
                state.turns.push_back(owner);
                passed_over += 1;
                continue;
            }
            passed_over = 0;
            if let Some((_, waiter)) = state.queues.get_mut(&owner).and_then(VecDeque::pop_front) {
                state.leaves(owner);
                given.push((waiter, self.take(state, owner)));
            }
        }
        given
    }
}

impl State {
    /// One of this owner's waits no more. If others do, its turn comes again.
    fn leaves(&mut self, owner: Owner) {
        self.waiting.give_back(owner, 1);
        if self.queues.get(&owner).is_some_and(VecDeque::is_empty) {
            self.queues.remove(&owner);
            self.turns.retain(|turn| *turn != owner);
        } else if !self.turns.contains(&owner) {
            self.turns.push_back(owner);
        }
    }
}

impl RequestPermit {
    /// A request is sent by it now. If the place is dropped before the request is
    /// [over](Self::over), its caller has left.
    pub(super) fn sends(&mut self, idempotency: Idempotency) {
        self.pending = idempotency == Idempotency::NonIdempotent;
    }

    /// The request has its answer, or never will.
    pub(super) fn over(mut self) {
        self.pending = false;
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        let (shared, owner, connection_group, abandoned) = (
            Arc::clone(&self.shared),
            self.owner,
            self.connection_group,
            self.shared.limits.abandoned,
        );
        match Handle::try_current() {
            Ok(runtime) if self.pending && !abandoned.is_zero() => {
                runtime.spawn(async move {
                    sleep(abandoned).await;
                    shared.take_back(owner, connection_group);
                });
            }
            _ => shared.take_back(owner, connection_group),
        }
    }
}

/// A request that waits. Dropping it leaves the queue.
struct Waiter<'a> {
    shared: &'a Arc<Shared>,
    owner: Owner,
    number: u64,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.shared.queued.dec();
        let mut state = self.shared.lock();
        let Some(queue) = state.queues.get_mut(&self.owner) else {
            return;
        };
        // They queue in the order of their numbers. One that was given its place is not there any
        // more.
        if let Ok(at) = queue.binary_search_by_key(&self.number, |(number, _)| *number) {
            queue.remove(at);
            state.leaves(self.owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        task::{JoinHandle, yield_now},
        time::Instant,
    };

    use super::*;

    /// Asks for a place as `name`, up to where it would wait.
    async fn ask(admission: &Admission, name: &str) -> JoinHandle<Result<RequestPermit, Error>> {
        let (admission, name) = (admission.clone(), name.to_owned());
        let asking = tokio::spawn(async move { admission.enter(Owner::of(&name)).await });
        yield_now().await;
        asking
    }

    fn admission(requests: usize, per_connection: usize, queue: usize) -> Admission {
        let queued = IntGauge::new("queued", "Those that wait.").expect("a name");
        let (wait, abandoned) = (Duration::from_millis(1100), Duration::from_secs(1));
        Admission::new(
            RequestLimits {
                requests,
                per_connection,
                queue,
                wait,
                abandoned,
            },
            queued,
        )
    }

    fn is_empty(admission: &Admission) -> bool {
        let state = admission.0.lock();
        state.running.is_empty()
            && state.waiting.is_empty()
            && state.queues.is_empty()
            && state.turns.is_empty()
            && state.connection_groups.iter().all(|it| *it == 0)
            && admission.0.queued.get() == 0
    }

    #[tokio::test]
    async fn the_queue_is_served_owner_by_owner() {
        let admission = admission(1, 1, 100);
        let mut permit = admission
            .enter(Owner::of(&"a"))
            .await
            .expect("a free place");
        let mut waiting = Vec::new();
        for name in ["a", "a", "a", "a", "b", "b", "c", "a"] {
            waiting.push((name, ask(&admission, name).await));
        }
        let mut served = Vec::new();
        while !waiting.is_empty() {
            drop(permit);
            yield_now().await;
            let at = waiting
                .iter()
                .position(|(_, asking)| asking.is_finished())
                .expect("somebody was served");
            let (name, asking) = waiting.remove(at);
            permit = asking.await.expect("no panic").expect("a place");
            served.push(name);
        }
        assert_eq!(served, ["a", "b", "c", "a", "b", "a", "a", "a"]);
        drop(permit);
        assert!(is_empty(&admission));
    }

    #[tokio::test]
    async fn owners_get_equal_shares_and_some_places_are_left() {
        for (names, expected) in [(&["a"][..], [24, 0]), (&["a", "b"], [15, 14])] {
            let admission = admission(36, 10, 0);
            let mut places = Vec::new();
            let mut held = [0, 0];
            for turn in 0..100 {
                let who = turn % names.len();
                if let Ok(permit) = admission.enter(Owner::of(&names[who])).await {
                    held[who] += 1;
                    places.push(permit);
                }
            }
            assert_eq!(held, expected);
            assert!(admission.enter(Owner::of(&"new")).await.is_ok());
            // No connection has more than it may have.
            assert!(
                admission
                    .0
                    .lock()
                    .connection_groups
                    .iter()
                    .all(|connection_group| *connection_group <= 10)
            );
            drop(places);
            assert!(is_empty(&admission));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_whose_caller_left_keeps_its_place_for_a_while() {
        let admission = admission(1, 1, 1);
        for (idempotency, over, kept) in [
            (Idempotency::NonIdempotent, false, 1000),
            (Idempotency::NonIdempotent, true, 0),
            (Idempotency::Idempotent, false, 0),
        ] {
            let mut permit = admission
                .enter(Owner::of(&"a"))
                .await
                .expect("a free place");
            permit.sends(idempotency);
            let abandoned = Instant::now();
            if over {
                permit.over();
            } else {
                drop(permit);
            }
            drop(admission.enter(Owner::of(&"b")).await);
            assert_eq!(
                abandoned.elapsed().as_millis() / 100 * 100,
                kept,
                "{idempotency:?} {over}"
            );
        }
        assert!(is_empty(&admission));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_wait_any_more_leaves_nothing_behind() {
        let admission = admission(1, 1, 2);
        let permit = admission
            .enter(Owner::of(&"a"))
            .await
            .expect("a free place");
        let (bored, gone) = (ask(&admission, "a").await, ask(&admission, "b").await);
        assert!(
            admission.enter(Owner::of(&"c")).await.is_err(),
            "the queue is full"
        );
        gone.abort();
        assert!(matches!(
            bored.await.expect("no panic"),
            Err(Error::Overloaded(_))
        ));
        // Given and not taken: it goes on to the next.
        let (given, next) = (ask(&admission, "a").await, ask(&admission, "b").await);
        drop(permit);
        given.abort();
        drop(next.await.expect("no panic").expect("a place"));
        assert!(is_empty(&admission));
    }
}
