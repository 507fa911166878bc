//! Shares: how much of what is limited one caller may hold.
//!
//! Must hold:
//!
//! - No more is held than the limit allows.
//! - **A guaranteed share.** A caller that holds less than half of an equal part (the limit, by the
//!   callers that hold anything, by two), and at least one, is not refused because of others: what
//!   a caller takes beyond its own guaranteed share leaves those of all others free, and one for a
//!   caller that is not there yet. Alone a caller gets two thirds, of two things one.
//! - Beyond its guaranteed share, a caller takes only while it holds less than eight times
//!   what is then left to spare. So shares become equal as permits come back.
//! - **Weights.** All of this is by weight: an owner of weight 2 counts as two callers. Weights of
//!   owners that hold something are those that they had when they last took.
//! - A permit knows its owner and its weight, and is given back by its drop.
//! - **Giving way.** A permit may be marked as one that gives way: its connection is idle, its
//!   answer is not read. Where there is no room for somebody else, the largest holder's oldest one
//!   is taken back. Nothing else is taken back from anybody: several newcomers that arrive at once
//!   while all is held, and nothing gives way, may find less than their shares.
//!
//! Why not a semaphore: it serves first come, first served, and the flood came first.

mod accepted;
mod held;
mod weights;

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    hash::{BuildHasher as _, Hash, Hasher, RandomState},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak},
};

use prometheus::IntGauge;
use tokio::time::Instant;

pub use accepted::{Accepted, Credential};
pub use held::{HeldBytes, HeldPart};
pub use weights::{MAX_WEIGHT, Weights};

/// How many times what is left to spare a caller may hold.
const HEADROOM: usize = 8;

/// Who holds something: a caller by its name, by its credential, or by its address. Owners are told
/// apart by a keyed hash: that two are taken for one is unlikely and harmless, and no credential is
/// held. The default is all callers together that cannot be told apart. The weight does not tell
/// owners apart.
#[derive(Debug, Clone, Copy)]
pub struct Owner {
    hash: u64,
    weight: u16,
}

impl Default for Owner {
    fn default() -> Self {
        Self { hash: 0, weight: 1 }
    }
}

impl PartialEq for Owner {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl Eq for Owner {}

impl PartialOrd for Owner {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Owner {
    fn cmp(&self, other: &Self) -> Ordering {
        self.hash.cmp(&other.hash)
    }
}

impl Hash for Owner {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
    }
}

impl Owner {
    /// The owner of this identity.
    pub fn of(identity: &impl Hash) -> Self {
        static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self {
            hash: HASHER.hash_one(identity),
            weight: 1,
        }
    }

    /// How many callers it counts as.
    pub fn weight(self) -> usize {
        usize::from(self.weight)
    }

    /// The same owner with this weight, from 1 on: it counts as so many callers.
    #[must_use]
    pub fn of_weight(self, weight: u16) -> Self {
        Self {
            weight: weight.max(1),
            ..self
        }
    }
}

/// What is limited, in words for callers and operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// What there may be too many of, such as `live streams`.
    pub what: &'static str,
    /// How many there may be.
    pub max: usize,
    /// The flag that says so.
    pub flag: &'static str,
}

/// Who holds how much of one limit. Pure: the lock is its user's.
#[derive(Debug)]
pub struct Ledger {
    max: usize,
    held: usize,
    owners: BTreeMap<Owner, Holding>,
    /// The weights of all that hold anything.
    weights: usize,
}

/// What one owner holds.
#[derive(Debug, Default)]
struct Holding {
    held: usize,
    /// The owner's weight when it last took something.
    weight: usize,
}

impl Ledger {
    /// A ledger of `max` things, nothing of which is held.
    pub fn new(max: usize) -> Self {
        Self {
            max,
            held: 0,
            owners: BTreeMap::new(),
            weights: 0,
        }
    }

    /// What nobody holds.
    pub fn free(&self) -> usize {
        self.max.saturating_sub(self.held)
    }

    /// Whether `owner` may take `weight` more.
    pub fn admits(&self, owner: Owner, weight: usize) -> bool {
        let Some(rest) = self.free().checked_sub(weight) else {
            return false;
        };
        let own = usize::from(owner.weight);
        let holding = self.owners.get(&owner);
        let mine = holding.map_or(0, |holding| holding.held);
        let others = self.weights - holding.map_or(0, |holding| holding.weight);
        let weights = others + own;
        if mine + weight <= self.guaranteed(own, weights) {
            return true;
        }
        let newcomer = self.guaranteed(1, weights + 1);
        let spares = |reserved: usize| {
            let spare = rest.checked_sub(reserved);
            spare.is_some_and(|spare| mine + weight <= (spare + weight) * HEADROOM * own)
        };
        let other_owners = self.owners.len() - usize::from(holding.is_some());
        // More than all guaranteed shares together can be: often there is no need to look at each.
        if spares(self.max * others / weights / 2 + other_owners + newcomer) {
            return true;
        }
        let others = self.owners.iter().filter(|(other, _)| **other != owner);
        let missing: usize = others
            .map(|(_, other)| {
                self.guaranteed(other.weight, weights)
                    .saturating_sub(other.held)
            })
            .sum();
        spares(missing + newcomer)
    }

    /// `owner` takes `weight`, which has to be [admitted](Self::admits).
    pub fn take(&mut self, owner: Owner, weight: usize) {
        if weight > 0 {
            self.held += weight;
            let holding = self.owners.entry(owner).or_default();
            let own = usize::from(owner.weight);
            self.weights = self.weights - holding.weight + own;
            holding.held += weight;
            holding.weight = own;
        }
    }

    /// `owner` gives `weight` back.
    pub fn give_back(&mut self, owner: Owner, weight: usize) {
        self.held -= weight;
        if let Some(holding) = self.owners.get_mut(&owner) {
            holding.held -= weight;
            if holding.held == 0 {
                self.weights -= holding.weight;
                self.owners.remove(&owner);
            }
        }
    }

    /// What an owner would hold with `more`, by its weight: comparable with that of others.
    fn by_weight(&self, owner: Owner, more: usize) -> usize {
        let holding = self.owners.get(&owner);
        let (held, weight) = holding.map_or((0, owner.weight.into()), |it| (it.held, it.weight));
        (held + more) / weight
    }

    /// Whether nobody holds anything.
    pub fn is_empty(&self) -> bool {
        self.held == 0 && self.owners.is_empty()
    }

    /// The share from which nobody of this weight is kept by others, if all that hold anything have
    /// these weights together.
    fn guaranteed(&self, weight: usize, weights: usize) -> usize {
        (self.max * weight / weights / 2).max(1)
    }
}

/// Permits for what is limited and never waited for.
#[derive(Debug, Clone)]
pub struct Shares(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limit: Limit,
    state: Mutex<State>,
    /// Shows what nobody holds.
    left: Option<IntGauge>,
}

#[derive(Debug)]
struct State {
    ledger: Ledger,
    /// The permits that give way, by owner, oldest first.
    giving_way: BTreeMap<Owner, BTreeMap<Turn, Yielding>>,
    /// Numbers them.
    next: u64,
}

/// From when on a permit gives way, and its number.
type Turn = (Instant, u64);

/// A permit that gives way.
#[derive(Debug)]
struct Yielding {
    weight: usize,
    holder: Weak<dyn GivesWay>,
}

/// What holds a permit that may be taken back.
pub trait GivesWay: Send + Sync + std::fmt::Debug {
    /// The permit was taken back: lets go of what it stands for. No lock is held.
    fn give_way(&self);
}

impl Shares {
    /// Shares of what `limit` allows.
    pub fn new(limit: Limit) -> Self {
        Self::with(limit, None)
    }

    /// The same, and `left` shows what nobody holds.
    pub fn shown(limit: Limit, left: IntGauge) -> Self {
        left.set(i64::try_from(limit.max).unwrap_or(i64::MAX));
        Self::with(limit, Some(left))
    }

    fn with(limit: Limit, left: Option<IntGauge>) -> Self {
        let state = State {
            ledger: Ledger::new(limit.max),
            giving_way: BTreeMap::new(),
            next: 0,
        };
        Self(Arc::new(Shared {
            limit,
            state: Mutex::new(state),
            left,
        }))
    }

    /// A permit for `weight`, or at once the limit that stands against it. What gives way does so.
    pub fn take(&self, owner: Owner, weight: usize) -> Result<Permit, Limit> {
        // Nothing is always to be had.
        if weight > 0 {
            self.admit(owner, weight)?;
        }
        Ok(Permit {
            shares: self.clone(),
            owner,
            weight,
            turn: None,
            is_taken_back: false,
        })
    }

    fn admit(&self, owner: Owner, weight: usize) -> Result<(), Limit> {
        loop {
            let holder = {
                let mut state = self.state();
                if state.ledger.admits(owner, weight) {
                    state.ledger.take(owner, weight);
                    self.show(&state);
                    return Ok(());
                }
                state.take_back(owner, weight).ok_or(self.0.limit)?
            };
            // What it lets go of may be permits of these shares.
            if let Some(holder) = holder.upgrade() {
                holder.give_way();
            }
        }
    }

    fn give_back(&self, owner: Owner, weight: usize) {
        let mut state = self.state();
        state.ledger.give_back(owner, weight);
        self.show(&state);
    }

    fn show(&self, state: &State) {
        if let Some(left) = &self.0.left {
            left.set(i64::try_from(state.ledger.free()).unwrap_or(i64::MAX));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn yielding(&mut self, owner: Owner, turn: Turn) -> Option<&mut Yielding> {
        self.giving_way.get_mut(&owner)?.get_mut(&turn)
    }

    /// Takes back the oldest permit that gives way, of the largest holder that has one. Others give
    /// way to `owner` only if they hold more than it would with `weight`; `None` if nobody does.
    fn take_back(&mut self, owner: Owner, weight: usize) -> Option<Weak<dyn GivesWay>> {
        let now = Instant::now();
        let ledger = &self.ledger;
        let would_hold = ledger.by_weight(owner, weight);
        let largest = self
            .giving_way
            .iter()
            .filter(|(_, permits)| permits.keys().next().is_some_and(|(from, _)| *from <= now))
            .map(|(holder, _)| (ledger.by_weight(*holder, 0), *holder))
            .filter(|(held, holder)| *holder == owner || *held > would_hold)
            .max_by_key(|(held, _)| *held);
        let (_, largest) = largest?;
        let permits = self.giving_way.get_mut(&largest)?;
        let (_, permit) = permits.pop_first()?;
        if permits.is_empty() {
            self.giving_way.remove(&largest);
        }
        self.ledger.give_back(largest, permit.weight);
        Some(permit.holder)
    }
}

/// A part of what is limited, until it is dropped.
#[derive(Debug)]
pub struct Permit {
    shares: Shares,
    owner: Owner,
    weight: usize,
    /// Since when it gives way, if it does or did until it was taken back.
    turn: Option<Turn>,
    /// It was taken back, which was noticed.
    is_taken_back: bool,
}

impl Permit {
    /// Makes it one for `weight`, which gives way as before. If there is no room for that, it stays
    /// as large as it was. One that was taken back takes nothing more.
    pub fn resize(&mut self, weight: usize) -> Result<(), Limit> {
        if weight > self.weight {
            // Not while it takes: it would give way to itself.
            let gave_way = self.stay_for_now();
            if self.is_taken_back {
                return Err(self.shares.0.limit);
            }
            let admitted = self.shares.admit(self.owner, weight - self.weight);
            if admitted.is_ok() {
                self.weight = weight;
            }
            if let Some((turn, holder)) = gave_way {
                self.give_way_as(turn, holder);
            }
            return admitted;
        }
        let shares = self.shares.clone();
        let mut state = shares.state();
        if let Some(turn) = self.turn {
            match state.yielding(self.owner, turn) {
                Some(yielding) => yielding.weight = weight,
                None => self.lose(),
            }
        }
        if self.weight > weight {
            state.ledger.give_back(self.owner, self.weight - weight);
            self.weight = weight;
            shares.show(&state);
        }
        Ok(())
    }

    /// It gives way from then on: `holder` is told when it was taken back.
    pub fn give_way(&mut self, from: Instant, holder: Weak<dyn GivesWay>) {
        self.stay();
        if !self.is_taken_back {
            let mut state = self.shares.state();
            let turn = (from, state.next);
            state.next += 1;
            drop(state);
            self.give_way_as(turn, holder);
        }
    }

    fn give_way_as(&mut self, turn: Turn, holder: Weak<dyn GivesWay>) {
        let mut state = self.shares.state();
        let permits = state.giving_way.entry(self.owner).or_default();
        let weight = self.weight;
        permits.insert(turn, Yielding { weight, holder });
        self.turn = Some(turn);
    }

    /// It does not give way any more. One that was taken back is one for nothing.
    pub fn stay(&mut self) {
        self.stay_for_now();
    }

    /// The same; gives how it gave way, if it was not taken back.
    fn stay_for_now(&mut self) -> Option<(Turn, Weak<dyn GivesWay>)> {
        let turn = self.turn.take()?;
        let mut state = self.shares.state();
        let permits = state.giving_way.get_mut(&self.owner);
        let yielding = permits.and_then(|permits| permits.remove(&turn));
        if state
            .giving_way
            .get(&self.owner)
            .is_some_and(BTreeMap::is_empty)
        {
            state.giving_way.remove(&self.owner);
        }
        drop(state);
        if yielding.is_none() {
            self.lose();
        }
        Some((turn, yielding?.holder))
    }

    /// It was taken back.
    fn lose(&mut self) {
        self.turn = None;
        self.weight = 0;
        self.is_taken_back = true;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.stay();
        self.shares.give_back(self.owner, self.weight);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: fn(usize) -> Limit = |max| Limit {
        what: "things",
        max,
        flag: "--max-things",
    };

    /// Takes one by one in turn until nobody gets more, and says how much each then holds.
    fn flood(max: usize, names: &[&str]) -> Vec<usize> {
        let shares = Shares::new(LIMIT(max));
        let mut permits = Vec::new();
        let mut held = vec![0; names.len()];
        loop {
            let before = permits.len();
            for (at, name) in names.iter().enumerate() {
                if let Ok(permit) = shares.take(Owner::of(name), 1) {
                    permits.push(permit);
                    held[at] += 1;
                }
            }
            if permits.len() == before {
                drop(permits);
                assert!(shares.state().ledger.is_empty());
                return held;
            }
        }
    }

    #[test]
    fn alone_a_caller_gets_most_and_many_get_equal_parts() {
        let cases: [(usize, &[&str], &[usize]); 7] = [
            (1, &["a"], &[1]),
            (2, &["a"], &[1]),
            (2, &["a", "b"], &[1, 1]),
            (3, &["a", "b"], &[1, 1]),
            (36, &["a"], &[24]),
            (36, &["a", "b"], &[15, 14]),
            (36, &["a", "b", "c"], &[11, 10, 10]),
        ];
        for (max, names, expected) in cases {
            assert_eq!(flood(max, names), expected, "{max} {names:?}");
        }
    }

    #[test]
    fn a_caller_that_comes_after_a_flood_gets_its_share_at_every_limit() {
        for max in 2..100 {
            let shares = Shares::new(LIMIT(max));
            let all = |name: &str| -> Vec<_> {
                std::iter::from_fn(|| shares.take(Owner::of(&name), 1).ok()).collect()
            };
            let flood = all("a");
            let late = all("b");
            assert!(late.len() >= (max / 4).max(1), "{max}: {}", late.len());
            drop((flood, late));
            assert!(shares.state().ledger.is_empty());
        }
    }

    #[test]
    fn shares_become_equal_as_permits_come_back() {
        let shares = Shares::new(LIMIT(100));
        let all = |name: &str| -> Vec<_> {
            std::iter::from_fn(|| shares.take(Owner::of(&name), 1).ok()).collect()
        };
        let (mut a, mut b) = (all("a"), all("b"));
        for _ in 0..200 {
            // Whatever either gives back, both want at once; the flood asks first.
            a.pop();
            a.extend(all("a"));
            b.extend(all("b"));
        }
        assert!(a.len().abs_diff(b.len()) <= 2, "{} {}", a.len(), b.len());
    }

    /// An owner of a weight of its own.
    fn numbered(hash: u64) -> Owner {
        Owner { hash, weight: 1 }.of_weight(u16::try_from(hash).expect("few"))
    }

    #[test]
    fn shares_are_by_weight_and_a_light_caller_still_has_its_own() {
        let shares = Shares::new(LIMIT(100));
        let (heavy, light) = (Owner::of(&"a").of_weight(3), Owner::of(&"b"));
        let all = |owner: Owner| -> Vec<_> {
            std::iter::from_fn(|| shares.take(owner, 1).ok()).collect()
        };
        let (mut a, mut b) = (all(heavy), all(light));
        assert!(b.len() >= 100 / 4 / 2, "{}", b.len());
        for _ in 0..300 {
            a.pop();
            b.pop();
            b.extend(all(light));
            a.extend(all(heavy));
        }
        let (a_held, b_held) = (a.len(), b.len());
        assert!(a_held > 2 * b_held && b_held >= 12, "{a_held} {b_held}");
        drop((a, b));
        let ledger = &shares.state().ledger;
        assert!(ledger.is_empty() && ledger.weights == 0);
    }

    /// Notes that its permit was taken back, and drops it then.
    #[derive(Debug, Default)]
    struct Holder(Mutex<Option<Permit>>);

    impl GivesWay for Holder {
        fn give_way(&self) {
            drop(self.0.lock().expect("no panic").take());
        }
    }

    impl Holder {
        fn is_there(&self) -> bool {
            self.0.lock().expect("no panic").is_some()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_largest_holders_oldest_gives_way_to_who_holds_less() {
        let shares = Shares::new(LIMIT(100));
        let (a, b, c) = (Owner::of(&"a"), Owner::of(&"b"), Owner::of(&"c"));
        let yielding = |owner: Owner, weight: usize| {
            let mut permit = shares.take(owner, weight).expect("room");
            let held_permit = Arc::new(Holder::default());
            let holder: Weak<Holder> = Arc::downgrade(&held_permit);
            permit.give_way(Instant::now() + std::time::Duration::from_secs(1), holder);
            *held_permit.0.lock().expect("no panic") = Some(permit);
            held_permit
        };
        let (small, first, second) = (yielding(b, 10), yielding(a, 30), yielding(a, 20));
        let all = [&small, &first, &second];
        let there = || all.map(|held_permit| held_permit.is_there());
        assert!(shares.take(c, 45).is_err(), "it is too early to give way");
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        let third = shares.take(c, 45).expect("the largest holder gives way");
        assert_eq!(there(), [true, false, true]);
        // Nobody gives way to who would hold more.
        shares.take(c, 45).expect_err("no room");
        assert_eq!(there(), [true, false, true]);
        // One's own do.
        let mut stays = shares.take(b, 5).expect("room");
        stays.give_way(Instant::now(), Weak::<Holder>::new());
        stays.stay();
        drop((third, small, first, second));
        assert_eq!(shares.state().ledger.free(), 95);
        stays.resize(40).expect("room");
        assert_eq!(shares.state().ledger.free(), 60);
        drop(stays);
        let state = shares.state();
        assert!(state.ledger.is_empty() && state.giving_way.is_empty());
    }

    proptest! {
        /// Whatever is taken and given back, the limit holds.
        #[test]
        fn what_is_taken_is_given_back(max in 1_usize..50, turns in prop::collection::vec((0_u64..5, 0_usize..4, any::<bool>()), 0..200)) {
            let mut ledger = Ledger::new(max);
            let mut held: Vec<(Owner, usize)> = Vec::new();
            for (name, weight, back) in turns {
                if back {
                    if let Some((owner, weight)) = held.pop() {
                        ledger.give_back(owner, weight);
                    }
                } else if ledger.admits(numbered(name), weight) {
                    ledger.take(numbered(name), weight);
                    held.push((numbered(name), weight));
                }
                let sum: usize = held.iter().map(|(_, weight)| weight).sum();
                prop_assert!(sum <= max && ledger.free() == max - sum);
            }
            for (owner, weight) in held {
                ledger.give_back(owner, weight);
            }
            prop_assert!(ledger.is_empty());
        }

        /// Of two things or more each of two callers can have one, and half of an equal part,
        /// whatever the other one has taken and given back before.
        #[test]
        fn of_two_or_more_each_of_two_callers_can_have_one(max in 2_usize..1000, turns in prop::collection::vec((1_usize..1000, any::<bool>()), 0..300)) {
            let mut ledger = Ledger::new(max);
            let (first, late) = (Owner::of(&"first"), Owner::of(&"late"));
            let mut held = Vec::new();
            for (weight, back) in turns {
                if back {
                    ledger.give_back(first, held.pop().unwrap_or_default());
                } else if ledger.admits(first, weight) {
                    ledger.take(first, weight);
                    held.push(weight);
                }
            }
            while ledger.admits(first, 1) {
                ledger.take(first, 1);
            }
            for _ in 0..(max / 4).max(1) {
                prop_assert!(ledger.admits(late, 1));
                ledger.take(late, 1);
            }
        }
    }
}
