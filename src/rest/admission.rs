//! How many upstream requests there may be at a time, and whose turn it is.
//!
//! Must hold: load is shed, never piled up. Requests in flight, requests that wait, and the time
//! that they wait are bounded; what exceeds a bound is refused at once. And one tenant's flood
//! leaves others served: a tenant takes a place only while it holds fewer than [`HEADROOM`] times
//! what is then left free. Alone it gets almost all places, many get equal shares, and whoever
//! comes new finds one free. The same holds for places in the queue, which is served tenant by
//! tenant.
//!
//! A tenant is a caller's name ([`super::Caller::tenant`]); where it has none, or a credential of
//! its own, also that and whatever else of it reaches the upstream ([`super::Caller::identity`]).
//!
//! A create or a submit that has been sent is work for the upstream whether or not its caller
//! waits. Its place is kept for a while after the caller has left ([`RequestLimits::left`]), so
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
    hash::{BuildHasher as _, Hash, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus::IntGauge;
use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{sleep, timeout},
};

use crate::error::{Error, Idempotency};

/// How many times what is left free a tenant may hold. Alone it gets eight places of nine.
const HEADROOM: usize = 8;

/// Limits of upstream requests. [`Default`] suits most upstreams.
#[derive(Debug, Clone)]
pub struct RequestLimits {
    /// Upstream requests in flight. A stream counts until its head is there, a request until its
    /// answer is.
    pub requests: usize,
    /// How many of them go to one client, which has one connection if the upstream speaks HTTP/2.
    /// To be at most the upstream's stream limit.
    pub per_connection: usize,
    /// Requests that wait for a place. One more is refused.
    pub queue: usize,
    /// How long a request waits for a place before it is refused.
    pub wait: Duration,
    /// How long a create or a submit keeps its place after its caller has left: the upstream goes
    /// on with it. Without that, calls that are cancelled as soon as they are made would reach the
    /// upstream without any bound; with it, as many a second as there are places.
    pub left: Duration,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            requests: 512,
            per_connection: 100,
            queue: 1024,
            wait: Duration::from_secs(5),
            left: Duration::from_secs(1),
        }
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
    /// Tenants are told apart by a hash: that two are taken for one is unlikely and harmless, and
    /// no credential is held.
    hasher: RandomState,
}

#[derive(Debug)]
struct State {
    running: usize,
    waiting: usize,
    /// Requests on each client.
    connection_groups: Vec<usize>,
    /// By hash: a map that hashes would do so again.
    tenants: BTreeMap<u64, Tenant>,
    /// The tenants that wait, in the order of their turns.
    turns: VecDeque<u64>,
    /// Numbers those that wait.
    next: u64,
}

#[derive(Debug, Default)]
struct Tenant {
    running: usize,
    queue: VecDeque<(u64, oneshot::Sender<Place>)>,
}

/// A place for one upstream request, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    shared: Arc<Shared>,
    tenant: u64,
    /// The client to send it by.
    pub(super) connection_group: usize,
    /// A write is under way by it.
    pending: bool,
}

impl Admission {
    pub(super) fn new(limits: RequestLimits, queued: IntGauge) -> Self {
        let state = State {
            running: 0,
            waiting: 0,
            connection_groups: vec![0; limits.connection_groups()],
            tenants: BTreeMap::new(),
            turns: VecDeque::new(),
            next: 0,
        };
        Self(Arc::new(Shared {
            limits,
            state: Mutex::new(state),
            queued,
            hasher: RandomState::new(),
        }))
    }

    /// Waits for a place.
    pub(super) async fn enter(&self, tenant: &impl Hash) -> Result<Place, Error> {
        const REFUSED: Error = Error::Overloaded {
            what: "upstream requests",
        };
        let (shared, limits) = (&self.0, &self.0.limits);
        let tenant = shared.hasher.hash_one(tenant);
        let (waiter, mut place) = {
            let mut state = shared.lock();
            let (free, unqueued) = (
                limits.requests.saturating_sub(state.running),
                limits.queue.saturating_sub(state.waiting),
            );
            let this = state.tenants.entry(tenant).or_default();
            let (running, waiting) = (this.running, this.queue.len());
            // Who waits already goes first.
            if waiting == 0 && running < free * HEADROOM {
                return Ok(shared.take(&mut state, tenant));
            }
            if waiting >= unqueued * HEADROOM {
                state.forget_idle(tenant);
                return Err(REFUSED);
            }
            let number = state.next;
            state.next += 1;
            state.waiting += 1;
            let (send, place) = oneshot::channel();
            state
                .tenants
                .entry(tenant)
                .or_default()
                .queue
                .push_back((number, send));
            if waiting == 0 {
                state.turns.push_back(tenant);
            }
            shared.queued.inc();
            (
                Waiter {
                    shared,
                    tenant,
                    number,
                },
                place,
            )
        };
        let given = timeout(limits.wait, &mut place).await;
        drop(waiter);
        // A place that was given just now is not let go unused.
        given
            .ok()
            .and_then(Result::ok)
            .or_else(|| place.try_recv().ok())
            .ok_or(REFUSED)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>, state: &mut State, tenant: u64) -> Place {
        let connection_group = state
            .connection_groups
            .iter()
            .position(|running| *running < self.limits.per_connection)
            .unwrap_or_default();
        state.connection_groups[connection_group] += 1;
        state.running += 1;
        state.tenants.entry(tenant).or_default().running += 1;
        Place {
            shared: Arc::clone(self),
            tenant,
            connection_group,
            pending: false,
        }
    }

    fn take_back(self: &Arc<Self>, tenant: u64, connection_group: usize) {
        let given = {
            let mut state = self.lock();
            state.running -= 1;
            state.connection_groups[connection_group] -= 1;
            if let Some(tenant) = state.tenants.get_mut(&tenant) {
                tenant.running -= 1;
            }
            state.forget_idle(tenant);
            self.give(&mut state)
        };
        for (waiter, place) in given {
            // One that has just left gives its place back by dropping it.
            let _ = waiter.send(place);
        }
    }

    /// Gives what is free to those that wait, one to each tenant in turn. Returns what is to be
    /// sent when the lock is let go.
    fn give(self: &Arc<Self>, state: &mut State) -> Vec<(oneshot::Sender<Place>, Place)> {
        let mut given = Vec::new();
        let mut passed_over = 0;
        while passed_over < state.turns.len() {
            let free = self.limits.requests.saturating_sub(state.running);
            let Some(tenant) = state.turns.pop_front() else {
                break;
            };
            let Some(this) = state.tenants.get_mut(&tenant) else {
                continue;
            };
            if this.running >= free * HEADROOM {
                state.turns.push_back(tenant);
                passed_over += 1;
                continue;
            }
            passed_over = 0;
            if let Some((_, waiter)) = this.queue.pop_front() {
                if !this.queue.is_empty() {
                    state.turns.push_back(tenant);
                }
                state.waiting -= 1;
                given.push((waiter, self.take(state, tenant)));
            }
        }
        given
    }
}

impl State {
    fn forget_idle(&mut self, tenant: u64) {
        if self
            .tenants
            .get(&tenant)
            .is_some_and(|it| it.running == 0 && it.queue.is_empty())
        {
            self.tenants.remove(&tenant);
        }
    }
}

impl Place {
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

impl Drop for Place {
    fn drop(&mut self) {
        let (shared, tenant, connection_group, left) = (
            Arc::clone(&self.shared),
            self.tenant,
            self.connection_group,
            self.shared.limits.left,
        );
        match Handle::try_current() {
            Ok(runtime) if self.pending && !left.is_zero() => {
                runtime.spawn(async move {
                    sleep(left).await;
                    shared.take_back(tenant, connection_group);
                });
            }
            _ => shared.take_back(tenant, connection_group),
        }
    }
}

/// A request that waits. Dropping it leaves the queue.
struct Waiter<'a> {
    shared: &'a Arc<Shared>,
    tenant: u64,
    number: u64,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.shared.queued.dec();
        let mut state = self.shared.lock();
        let Some(tenant) = state.tenants.get_mut(&self.tenant) else {
            return;
        };
        // They queue in the order of their numbers. One that was given its place is not there any
        // more.
        let Ok(at) = tenant
            .queue
            .binary_search_by_key(&self.number, |(number, _)| *number)
        else {
            return;
        };
        tenant.queue.remove(at);
        let left = tenant.queue.is_empty();
        state.waiting -= 1;
        if left {
            state.turns.retain(|turn| *turn != self.tenant);
        }
        state.forget_idle(self.tenant);
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
    async fn ask(admission: &Admission, name: &str) -> JoinHandle<Result<Place, Error>> {
        let (admission, tenant) = (admission.clone(), name.to_owned());
        let asking = tokio::spawn(async move { admission.enter(&tenant).await });
        yield_now().await;
        asking
    }

    fn admission(requests: usize, per_connection: usize, queue: usize) -> Admission {
        let queued = IntGauge::new("queued", "Those that wait.").expect("a name");
        let (wait, left) = (Duration::from_millis(1100), Duration::from_secs(1));
        Admission::new(
            RequestLimits {
                requests,
                per_connection,
                queue,
                wait,
                left,
            },
            queued,
        )
    }

    fn is_empty(admission: &Admission) -> bool {
        let state = admission.0.lock();
        state.running == 0
            && state.waiting == 0
            && state.tenants.is_empty()
            && state.turns.is_empty()
            && state.connection_groups.iter().all(|it| *it == 0)
            && admission.0.queued.get() == 0
    }

    #[tokio::test]
    async fn the_queue_is_served_tenant_by_tenant() {
        let admission = admission(1, 1, 100);
        let mut place = admission.enter(&"a").await.expect("a free place");
        let mut waiting = Vec::new();
        for name in ["a", "a", "a", "a", "b", "b", "c", "a"] {
            waiting.push((name, ask(&admission, name).await));
        }
        let mut served = Vec::new();
        while !waiting.is_empty() {
            drop(place);
            yield_now().await;
            let at = waiting
                .iter()
                .position(|(_, asking)| asking.is_finished())
                .expect("somebody was served");
            let (name, asking) = waiting.remove(at);
            place = asking.await.expect("no panic").expect("a place");
            served.push(name);
        }
        assert_eq!(served, ["a", "b", "c", "a", "b", "a", "a", "a"]);
        drop(place);
        assert!(is_empty(&admission));
    }

    #[tokio::test]
    async fn tenants_get_equal_shares_and_some_places_are_left() {
        for (names, expected) in [(&["a"][..], [32, 0]), (&["a", "b"], [17, 17])] {
            let admission = admission(36, 10, 0);
            let mut places = Vec::new();
            let mut held = [0, 0];
            for turn in 0..100 {
                let who = turn % names.len();
                if let Ok(place) = admission.enter(&names[who]).await {
                    held[who] += 1;
                    places.push(place);
                }
            }
            assert_eq!(held, expected);
            assert!(admission.enter(&"new").await.is_ok());
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
            let mut place = admission.enter(&"a").await.expect("a free place");
            place.sends(idempotency);
            let left = Instant::now();
            if over {
                place.over();
            } else {
                drop(place);
            }
            drop(admission.enter(&"b").await);
            assert_eq!(
                left.elapsed().as_millis() / 100 * 100,
                kept,
                "{idempotency:?} {over}"
            );
        }
        assert!(is_empty(&admission));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_wait_any_more_leaves_nothing_behind() {
        let admission = admission(1, 1, 2);
        let place = admission.enter(&"a").await.expect("a free place");
        let (bored, gone) = (ask(&admission, "a").await, ask(&admission, "b").await);
        assert!(admission.enter(&"c").await.is_err(), "the queue is full");
        gone.abort();
        assert!(matches!(
            bored.await.expect("no panic"),
            Err(Error::Overloaded { .. })
        ));
        // Given and not taken: it goes on to the next.
        let (given, next) = (ask(&admission, "a").await, ask(&admission, "b").await);
        drop(place);
        given.abort();
        drop(next.await.expect("no panic").expect("a place"));
        assert!(is_empty(&admission));
    }
}
