//! What is remembered of whose resources are.
//!
//! Must hold: it is bounded in number and age, and one caller's: that somebody else uses a resource
//! changes nothing for who asks. After a deletion nothing of what was read before it is remembered.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::time::Instant;

use crate::upstream::caller_mark::CallerMark;

/// How long it is remembered that a thread is not the caller's, or not there.
const DENIED: Duration = Duration::from_secs(1);

/// The longest path that is remembered, in bytes: no service's ids are nearly as long.
const MAX_PATH: usize = 256;

/// As many deletions as are kept for reads that began before them.
const DELETIONS: usize = 1024;

/// What a resource is to a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Its own.
    Own,
    /// Nobody's, which all may use.
    Shared,
    /// Not there.
    Denied,
}

/// What is remembered, whoever else has it.
pub(super) fn lock(memory: &Mutex<Memory>) -> MutexGuard<'_, Memory> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was read, and is being read.
#[derive(Debug, Default)]
pub(super) struct Memory {
    allowed: Remembered,
    denied: Remembered,
    /// Reads that go on, by path and mark.
    reading: HashMap<(String, CallerMark), Weak<tokio::sync::Mutex<()>>>,
    /// Paths that were deleted lately, the last one at the end, and how many there have been.
    deleted: VecDeque<Box<str>>,
    pub(super) deletions: u64,
}

impl Memory {
    /// One that remembers so many resources to be a caller's, and as many not to be.
    pub(super) fn new(max: usize) -> Self {
        let remembered = || Remembered {
            max,
            ..Remembered::default()
        };
        Self {
            allowed: remembered(),
            denied: remembered(),
            ..Self::default()
        }
    }

    pub(super) fn verdict(&mut self, path: &str, mark: &CallerMark) -> Option<Verdict> {
        let now = Instant::now();
        let allowed = self.allowed.verdict(path, mark, now);
        allowed.or_else(|| self.denied.verdict(path, mark, now))
    }

    /// Remembers what a read gave that began after so many deletions.
    pub(super) fn remember(
        &mut self,
        path: &str,
        mark: CallerMark,
        verdict: Verdict,
        age: Duration,
        began: u64,
    ) {
        let since = usize::try_from(self.deletions - began).unwrap_or(usize::MAX);
        let is_deleted = since > self.deleted.len()
            || self
                .deleted
                .iter()
                .rev()
                .take(since)
                .any(|deleted| **deleted == *path);
        if path.len() > MAX_PATH || is_deleted {
            return;
        }
        let (remembered, age) = match verdict {
            Verdict::Denied => (&mut self.denied, DENIED),
            Verdict::Own | Verdict::Shared => (&mut self.allowed, age),
        };
        let known = Known {
            mark,
            verdict,
            until: Instant::now() + age,
        };
        remembered.put(path, known);
    }

    pub(super) fn forget(&mut self, path: &str) {
        self.forget_allowed(path);
        self.denied.forget(path);
    }

    /// Forgets that anybody may use this, and what is being read of it.
    pub(super) fn forget_allowed(&mut self, path: &str) {
        self.allowed.forget(path);
        self.deletions += 1;
        self.deleted.push_back(path.into());
        if self.deleted.len() > DELETIONS {
            self.deleted.pop_front();
        }
    }
}

/// What is remembered of one caller and one resource.
#[derive(Debug, Clone, Copy)]
struct Known {
    mark: CallerMark,
    verdict: Verdict,
    until: Instant,
}

/// What is remembered, by path. Bounded: the older half is forgotten when the newer one is full.
#[derive(Debug, Default)]
struct Remembered {
    max: usize,
    newer: HashMap<Box<str>, Vec<Known>>,
    older: HashMap<Box<str>, Vec<Known>>,
}

impl Remembered {
    fn verdict(&mut self, path: &str, mark: &CallerMark, now: Instant) -> Option<Verdict> {
        let find = |known: &Vec<Known>| {
            let found = known.iter().find(|it| it.mark == *mark && it.until > now);
            found.copied()
        };
        if let Some(known) = self.newer.get(path).and_then(find) {
            return Some(known.verdict);
        }
        let known = self.older.get(path).and_then(find)?;
        self.put(path, known);
        Some(known.verdict)
    }

    fn put(&mut self, path: &str, known: Known) {
        if self.newer.len() >= (self.max / 2).max(1) && !self.newer.contains_key(path) {
            self.older = std::mem::take(&mut self.newer);
        }
        let now = Instant::now();
        let all = self.newer.entry(path.into()).or_default();
        all.retain(|it| it.mark != known.mark && it.until > now);
        all.push(known);
    }

    fn forget(&mut self, path: &str) {
        self.newer.remove(path);
        self.older.remove(path);
    }
}

/// A read that one caller's calls wait for together.
pub(super) struct Reading<'a> {
    memory: &'a Mutex<Memory>,
    key: (String, CallerMark),
    lock: Option<Arc<tokio::sync::Mutex<()>>>,
}

impl<'a> Reading<'a> {
    pub(super) fn join(all: &'a Mutex<Memory>, path: &str, mark: &CallerMark) -> Self {
        let key = (path.to_owned(), *mark);
        let mut memory = lock(all);
        let lock = memory.reading.get(&key).and_then(Weak::upgrade);
        let lock = lock.unwrap_or_default();
        memory.reading.insert(key.clone(), Arc::downgrade(&lock));
        Self {
            memory: all,
            key,
            lock: Some(lock),
        }
    }

    pub(super) async fn turn(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        match &self.lock {
            Some(lock) => Some(lock.lock().await),
            None => None,
        }
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut memory = lock(self.memory);
        self.lock = None;
        if let Some(lock) = memory.reading.get(&self.key)
            && lock.strong_count() == 0
        {
            memory.reading.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::MarkKey;

    const AGE: Duration = Duration::from_secs(600);

    fn mark(name: &str) -> CallerMark {
        MarkKey::new(&[7; 32]).mark(name)
    }

    #[test]
    fn what_is_remembered_is_one_callers_and_bounded() {
        let (mut memory, a, b) = (Memory::new(4), mark("a"), mark("b"));
        memory.remember("/threads/1", a, Verdict::Own, AGE, 0);
        assert_eq!(memory.verdict("/threads/1", &a), Some(Verdict::Own));
        assert_eq!(memory.verdict("/threads/1", &b), None);
        for number in 0..100 {
            memory.remember(&format!("/threads/x{number}"), b, Verdict::Own, AGE, 0);
            // What is used is not forgotten.
            assert_eq!(memory.verdict("/threads/1", &a), Some(Verdict::Own));
        }
        assert!(memory.allowed.newer.len() + memory.allowed.older.len() <= 4);
        let long = "x".repeat(MAX_PATH + 1);
        memory.remember(&long, a, Verdict::Own, AGE, 0);
        assert_eq!(memory.verdict(&long, &a), None);
    }

    #[test]
    fn a_read_that_began_before_a_deletion_is_not_remembered() {
        let (mut memory, a) = (Memory::new(10), mark("a"));
        memory.remember("/threads/1", a, Verdict::Own, AGE, 0);
        let began = memory.deletions;
        memory.forget("/threads/1");
        assert_eq!(memory.verdict("/threads/1", &a), None);
        memory.remember("/threads/1", a, Verdict::Own, AGE, began);
        assert_eq!(memory.verdict("/threads/1", &a), None);
        memory.remember("/threads/2", a, Verdict::Own, AGE, began);
        assert_eq!(memory.verdict("/threads/2", &a), Some(Verdict::Own));
        // More deletions than are kept: nobody knows.
        for _ in 0..=DELETIONS {
            memory.forget("/threads/3");
        }
        memory.remember("/threads/4", a, Verdict::Own, AGE, began);
        assert_eq!(memory.verdict("/threads/4", &a), None);
        let now = memory.deletions;
        memory.remember("/threads/1", a, Verdict::Own, AGE, now);
        assert_eq!(memory.verdict("/threads/1", &a), Some(Verdict::Own));
    }
}
