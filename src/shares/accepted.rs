//! Credentials that callers bring, and whether the upstream knows them.

use std::{
    collections::BTreeSet,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::Owner;

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
        if self.is_accepted() {
            self.owner
        } else {
            Owner::default()
        }
    }

    /// Whether the upstream has accepted it lately.
    pub fn is_accepted(&self) -> bool {
        let generations = self.accepted.generations();
        [&generations.newer, &generations.older]
            .iter()
            .any(|known| known.contains(&self.owner))
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
