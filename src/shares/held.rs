//! The bytes that are held for one call, or for one run that is polled.
//!
//! Must hold: an account costs one turn of its shares' lock when it is opened and one when it is
//! closed. What fits the allowance that it was opened with costs none: most calls never take more.
//! Bytes are given back in large steps, so that a stream does not come back for each event.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::time::Instant;

use super::{GivesWay, Limit, Owner, Permit, Shares};

/// What is smaller is not counted one by one: it is part of the allowance.
const SMALL: usize = 4 << 10;

/// What is taken and given back at a time.
const STEP: usize = 16 << 10;

/// An account of bytes. Cheap to clone; clones are the same account. The default counts nothing.
#[derive(Debug, Clone, Default)]
pub struct HeldBytes(Option<Arc<Account>>);

#[derive(Debug)]
struct Account {
    shares: Shares,
    owner: Owner,
    /// What was taken to begin with.
    allowance: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    permit: Permit,
    /// What the parts hold, and what is kept.
    used: usize,
    kept: usize,
}

/// A part of what an account holds, until it is dropped.
#[derive(Debug, Default)]
pub struct HeldPart {
    held: HeldBytes,
    bytes: usize,
}

impl HeldBytes {
    /// Opens an account of `owner` with an allowance, which it holds as long as it is open.
    pub fn open(shares: &Shares, owner: Owner, allowance: usize) -> Result<Self, Limit> {
        let permit = shares.take(owner, allowance)?;
        Ok(Self(Some(Arc::new(Account {
            shares: shares.clone(),
            owner,
            allowance,
            state: Mutex::new(State {
                permit,
                used: 0,
                kept: 0,
            }),
        }))))
    }

    /// Another account of the same shares, without an allowance, for what outlives this one.
    pub fn apart(&self) -> Result<Self, Limit> {
        let account = self.0.as_ref();
        account.map_or(Ok(Self(None)), |account| {
            Self::open(&account.shares, account.owner, 0)
        })
    }

    /// Holds these bytes.
    pub fn hold(&self, bytes: usize) -> Result<HeldPart, Limit> {
        let mut part = self.part();
        part.resize(bytes)?;
        Ok(part)
    }

    /// A part that holds nothing yet.
    pub fn part(&self) -> HeldPart {
        HeldPart {
            held: self.clone(),
            bytes: 0,
        }
    }

    /// Keeps what `part` holds, or what was kept before if that is more, until it is
    /// [released](Self::release).
    pub fn keep(&self, mut part: HeldPart) {
        if let Some(account) = &self.0
            && part.bytes > 0
        {
            let mut state = account.state();
            let more = part.bytes.saturating_sub(state.kept);
            part.bytes -= more;
            state.kept += more;
        }
    }

    /// Keeps nothing any more.
    pub fn release(&self) {
        if let Some(account) = &self.0 {
            let kept = std::mem::take(&mut account.state().kept);
            // Less is always to be had.
            _ = account.change(kept, 0);
        }
    }

    /// Whether it holds more than its allowance.
    pub fn exceeds_allowance(&self) -> bool {
        let account = self.0.as_ref();
        account.is_some_and(|account| account.state().used > account.allowance)
    }

    /// The limit of all accounts together, if anything is counted.
    pub fn limit(&self) -> Option<Limit> {
        self.0.as_ref().map(|account| account.shares.0.limit)
    }

    /// All of it gives way from then on, until it takes more or [stays](Self::stay).
    pub fn give_way(&self, from: Instant, holder: Weak<dyn GivesWay>) {
        if let Some(account) = &self.0 {
            account.state().permit.give_way(from, holder);
        }
    }

    /// It does not give way any more.
    pub fn stay(&self) {
        if let Some(account) = &self.0 {
            account.state().permit.stay();
        }
    }
}

impl Account {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is used; nothing is changed if there is no room.
    fn change(&self, before: usize, after: usize) -> Result<(), Limit> {
        let mut state = self.state();
        let used = state.used - before + after;
        let needed = used.max(self.allowance);
        let taken = state.permit.weight;
        let grows = after > before && needed > taken;
        if grows || taken >= needed + 2 * STEP {
            state.permit.resize(needed.next_multiple_of(STEP))?;
        }
        state.used = used;
        Ok(())
    }
}

impl HeldPart {
    /// Makes it so many bytes. If there is no room for them, it stays as it was.
    pub fn resize(&mut self, bytes: usize) -> Result<(), Limit> {
        let bytes = if bytes < SMALL { 0 } else { bytes };
        if bytes == self.bytes {
            return Ok(());
        }
        if let Some(account) = &self.held.0 {
            account.change(self.bytes, bytes)?;
        }
        self.bytes = bytes;
        Ok(())
    }

    /// How many bytes are counted.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for HeldPart {
    fn drop(&mut self) {
        // Less is always to be had.
        _ = self.resize(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_takes_what_its_parts_hold_and_gives_all_back() {
        let shares = Shares::new(Limit {
            what: "bytes",
            max: 3 << 20,
            flag: "--max-bytes",
        });
        let free = || shares.state().ledger.free();
        let taken = || (3 << 20) - free();
        let held = HeldBytes::open(&shares, Owner::default(), STEP).expect("room");
        let small = held.hold(SMALL - 1).expect("room");
        let within = held.hold(STEP).expect("room");
        assert_eq!((taken(), held.exceeds_allowance()), (STEP, false));
        let mut large = held.hold(100_000).expect("room");
        assert_eq!(taken(), (STEP + 100_000_usize).next_multiple_of(STEP));
        assert!(held.exceeds_allowance());
        large.resize(3 << 20).expect_err("there is not so much");
        assert_eq!(large.bytes(), 100_000);
        large.resize(90_000).expect("less");
        held.keep(held.hold(20_000).expect("room"));
        held.keep(held.hold(10_000).expect("room"));
        drop(large);
        assert_eq!(taken(), 3 * STEP, "the larger one is kept");
        held.release();
        let apart = held.apart().expect("room").hold(SMALL).expect("room");
        drop((held, small, within));
        assert_eq!(taken(), STEP, "what is apart is left");
        drop(apart);
        assert!(shares.state().ledger.is_empty());
        let nothing = HeldBytes::default().hold(usize::MAX).expect("not counted");
        assert_eq!(nothing.bytes(), usize::MAX);
    }
}
