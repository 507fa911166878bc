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
//!
//! Several newcomers that arrive at once while all is held may find less than their shares: nothing
//! is taken back from anybody.
//!
//! Why not a semaphore: it serves first come, first served, and the flood came first.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{BuildHasher as _, Hash, Hasher, RandomState},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
};

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

    /// The same owner with this weight, from 1 on: it counts as so many callers.
    #[must_use]
    pub fn of_weight(self, weight: u16) -> Self {
        Self {
            weight: weight.max(1),
            ..self
        }
    }
}

/// The heaviest weight of a caller.
pub const MAX_WEIGHT: u16 = 1000;

/// Callers' weights, by name. Who is not named has the weight 1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Weights(HashMap<String, u16>);

impl Weights {
    /// Reads a file of weights: on each line a caller's name, `=`, and its weight, from 1 to
    /// [`MAX_WEIGHT`]. Empty lines and lines that begin with `#` are for people.
    ///
    /// # Errors
    ///
    /// The line that is wrong, by its number.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(text).map_err(|_| "the weights are not text".to_owned())?;
        let lines = text.lines().map(str::trim).enumerate();
        let mut weights = HashMap::new();
        for (at, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            let line_number = at + 1;
            // A name may have a `=` itself.
            let (name, weight) = line
                .rsplit_once('=')
                .ok_or_else(|| format!("line {line_number} of the weights is not name=weight"))?;
            let weight = weight.trim().parse().ok();
            let weight = weight.filter(|weight| (1..=MAX_WEIGHT).contains(weight));
            let weight = weight.ok_or_else(|| {
                format!("line {line_number} of the weights: a weight is 1 to {MAX_WEIGHT}")
            })?;
            if weights.insert(name.trim().to_owned(), weight).is_some() {
                return Err(format!(
                    "line {line_number} of the weights names a caller again"
                ));
            }
        }
        Ok(Self(weights))
    }

    /// How many callers are named.
    pub fn summary(&self) -> String {
        format!("weights of {} callers", self.0.len())
    }

    /// The weight of the caller of this name.
    pub fn of(&self, name: &str) -> u16 {
        self.0.get(name).copied().unwrap_or(1)
    }
}

/// The most credentials that are remembered as accepted, times two.
const REMEMBERED: usize = 5_000;

/// Credentials that the upstream has accepted lately. Cheap to clone; clones see the same.
///
/// Why: a caller that brings its own key could pose as many by bogus keys. One that was never
/// accepted has no share of its own. What is remembered is bounded: the older half is forgotten
/// when the newer one is full.
#[derive(Debug, Clone, Default)]
pub struct Accepted(Arc<Mutex<Generations>>);

#[derive(Debug, Default)]
struct Generations {
    newer: BTreeSet<Owner>,
    older: BTreeSet<Owner>,
}

/// A caller's own credential, and whether the upstream knows it.
#[derive(Debug, Clone)]
pub struct Credential {
    owner: Owner,
    accepted: Accepted,
}

impl Accepted {
    /// The credential of this identity.
    pub fn credential(&self, identity: &impl Hash) -> Credential {
        Credential {
            owner: Owner::of(identity),
            accepted: self.clone(),
        }
    }

    fn generations(&self) -> MutexGuard<'_, Generations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Credential {
    /// Whose share its calls count to: its own once it was accepted, before that the one of all
    /// that cannot be told apart.
    pub fn owner(&self) -> Owner {
        let generations = self.accepted.generations();
        let known = [&generations.newer, &generations.older]
            .iter()
            .any(|known| known.contains(&self.owner));
        if known { self.owner } else { Owner::default() }
    }

    /// The upstream has done what was asked with it.
    pub fn accept(&self) {
        let mut generations = self.accepted.generations();
        if generations.newer.contains(&self.owner) {
            return;
        }
        if generations.newer.len() >= REMEMBERED {
            generations.older = std::mem::take(&mut generations.newer);
        }
        generations.newer.insert(self.owner);
    }

    /// The upstream does not know it (any more).
    pub fn reject(&self) {
        let mut generations = self.accepted.generations();
        generations.newer.remove(&self.owner);
        generations.older.remove(&self.owner);
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
    ledger: Mutex<Ledger>,
}

impl Shares {
    /// Shares of what `limit` allows.
    pub fn new(limit: Limit) -> Self {
        Self(Arc::new(Shared {
            limit,
            ledger: Mutex::new(Ledger::new(limit.max)),
        }))
    }

    /// A permit for `weight`, or at once the limit that stands against it.
    pub fn take(&self, owner: Owner, weight: usize) -> Result<Permit, Limit> {
        let mut ledger = self.ledger();
        if !ledger.admits(owner, weight) {
            return Err(self.0.limit);
        }
        ledger.take(owner, weight);
        Ok(Permit {
            shares: self.clone(),
            owner,
            weight,
        })
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.0.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A part of what is limited, until it is dropped.
#[derive(Debug)]
pub struct Permit {
    shares: Shares,
    owner: Owner,
    weight: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shares.ledger().give_back(self.owner, self.weight);
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
                assert!(shares.ledger().is_empty());
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
            assert!(shares.ledger().is_empty());
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
        let ledger = shares.ledger();
        assert!(ledger.is_empty() && ledger.weights == 0);
    }

    #[test]
    fn weights_are_lines_of_names() {
        let text = "# who\n\na = 3\nspiffe://d/x?y=z=1000\n";
        let weights = Weights::parse(text.as_bytes()).expect("weights");
        let of = ["a", "spiffe://d/x?y=z", "b"].map(|name| weights.of(name));
        assert_eq!(of, [3, 1000, 1]);
        for wrong in ["a", "a=0", "a=1001", "a=x", "a=1\na=2", "a=-1"] {
            Weights::parse(wrong.as_bytes()).expect_err(wrong);
        }
    }

    #[test]
    fn a_credential_has_a_share_of_its_own_once_it_was_accepted() {
        let accepted = Accepted::default();
        let (real, bogus) = (accepted.credential(&"real"), accepted.credential(&"bogus"));
        assert_eq!(real.owner(), bogus.owner());
        real.accept();
        assert_eq!(real.owner(), Owner::of(&"real"));
        assert_eq!(bogus.owner(), Owner::default());
        for number in 0..REMEMBERED {
            accepted.credential(&number).accept();
        }
        assert_eq!(real.owner(), Owner::of(&"real"), "the older half is kept");
        for number in 0..=2 * REMEMBERED {
            accepted.credential(&(number, "more")).accept();
        }
        assert_eq!(
            real.owner(),
            Owner::default(),
            "what is remembered is bounded"
        );
        real.accept();
        real.reject();
        assert_eq!(real.owner(), Owner::default());
    }

    proptest! {
        /// Whatever is taken and given back, the limit holds, and a caller that holds less than its
        /// guaranteed share gets one more as long as no newcomers came since others took theirs.
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
    }
}
