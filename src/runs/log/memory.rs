//! Logs in memory: of this replica, and gone with it.

use std::{
    collections::{HashMap, VecDeque},
    mem::take,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Entry, EventLog, Followers, Following, Key, LogError, LogLimits, PAGE_BYTES, Page, Position,
};
use crate::{shares::Owner, telemetry::EventLogMetrics};

/// What an entry takes beside its payload, in bytes.
const ENTRY_OVERHEAD: usize = 96;

/// Logs in memory.
#[derive(Debug)]
pub(in crate::runs) struct MemoryLog {
    limits: Arc<LogLimits>,
    followers: Followers,
    metrics: EventLogMetrics,
    logs: Mutex<Logs>,
}

#[derive(Debug, Default)]
struct Logs {
    runs: HashMap<Key, RunLog>,
    bytes: usize,
    /// Entries that were dropped for want of space and are not counted yet.
    trimmed: u64,
}

#[derive(Debug)]
struct RunLog {
    /// For whom it is recorded: whose share it takes.
    owner: Owner,
    entries: VecDeque<Entry>,
    bytes: usize,
    last: Position,
    /// Its writer, if there is one.
    holder: Option<u64>,
    /// When it is dropped, unless something is appended before.
    expires: Instant,
}

impl MemoryLog {
    pub(in crate::runs) fn new(limits: Arc<LogLimits>, metrics: EventLogMetrics) -> Self {
        Self::with(limits, Followers::default(), metrics)
    }

    /// The same, which wakes these followers.
    pub(super) fn with(
        limits: Arc<LogLimits>,
        followers: Followers,
        metrics: EventLogMetrics,
    ) -> Self {
        Self {
            limits,
            followers,
            metrics,
            logs: Mutex::default(),
        }
    }

    /// Begins an epoch that was claimed in a store. What there was before stays there.
    pub(super) fn begin(&self, key: &Key, owner: Owner, epoch: u64) {
        let log = RunLog {
            owner,
            entries: VecDeque::new(),
            bytes: 0,
            last: Position::new(epoch, 0),
            holder: Some(epoch),
            expires: Instant::now() + self.limits.live_ttl,
        };
        let mut logs = self.lock();
        if let Some(before) = logs.runs.insert(key.clone(), log) {
            logs.bytes -= before.bytes;
        }
        self.count(&mut logs);
    }

    /// Drops a log, unless an epoch later than `epoch` has begun.
    pub(super) fn drop_log(&self, key: &Key, epoch: u64) {
        let mut logs = self.lock();
        if logs
            .runs
            .get(key)
            .is_some_and(|log| log.last.epoch <= epoch)
            && let Some(log) = logs.runs.remove(key)
        {
            logs.bytes -= log.bytes;
        }
        self.count(&mut logs);
    }

    /// The entries after a position, if none of them has to be read elsewhere. Where nobody writes
    /// here any longer, what comes after the last entry has to be.
    pub(super) fn own_page(&self, key: &Key, after: Position) -> Option<Page> {
        let logs = self.lock();
        let log = logs.runs.get(key)?;
        let first = log
            .entries
            .front()
            .map_or(log.last.next(), |it| it.position);
        let is_own = after.next() >= first && after.epoch == first.epoch;
        (is_own && (log.holder.is_some() || after < log.last)).then(|| log.page(after))
    }

    /// What all logs take, in bytes.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Tells the metrics what has changed.
    fn count(&self, logs: &mut Logs) {
        self.metrics.trimmed.inc_by(take(&mut logs.trimmed));
        let bytes = i64::try_from(logs.bytes).unwrap_or(i64::MAX);
        self.metrics.bytes.set(bytes);
    }

    fn lock(&self) -> MutexGuard<'_, Logs> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl EventLog for MemoryLog {
    fn is_shared(&self) -> bool {
        false
    }

    async fn claim(
        &self,
        key: &Key,
        owner: Owner,
        after: Option<Position>,
    ) -> Result<u64, LogError> {
        let mut logs = self.lock();
        logs.expire();
        let log = logs.runs.get(key);
        let last = log.map_or(Position::START, |log| log.last);
        if let Some(after) = after
            && (last != after || log.is_some_and(|log| log.holder.is_some()))
        {
            return Err(LogError::Held);
        }
        let expires = Instant::now() + self.limits.live_ttl;
        let log = logs.runs.entry(key.clone()).or_insert_with(|| RunLog {
            owner,
            entries: VecDeque::new(),
            bytes: 0,
            last: Position::START,
            holder: None,
            expires,
        });
        let epoch = now().max(log.last.epoch + 1);
        let before = Bytes::from(log.last.to_string());
        log.holder = Some(epoch);
        log.expires = expires;
        let added = log.push(Position::new(epoch, 0), before);
        logs.bytes += added;
        self.count(&mut logs);
        drop(logs);
        self.followers.wake(key.as_str());
        Ok(epoch)
    }

    async fn append(
        &self,
        key: &Key,
        first: Position,
        payloads: &[Bytes],
        is_over: bool,
    ) -> Result<(), LogError> {
        let mut logs = self.lock();
        let log = logs.runs.get_mut(key).ok_or(LogError::Fenced)?;
        if log.last.epoch != first.epoch {
            return Err(LogError::Fenced);
        }
        let (mut position, mut added) = (first, 0);
        for payload in payloads {
            if position > log.last {
                added += log.push(position, payload.clone());
            }
            position = position.next();
        }
        let ttl = if is_over {
            self.limits.ttl
        } else {
            self.limits.live_ttl
        };
        log.expires = Instant::now() + ttl;
        let (freed, trimmed) = log.trim(self.limits.run_bytes, self.limits.run_entries);
        logs.trimmed += trimmed;
        logs.bytes = logs.bytes + added - freed;
        if logs.bytes > self.limits.bytes {
            logs.evict(self.limits.bytes - self.limits.bytes / 16);
        }
        self.count(&mut logs);
        drop(logs);
        self.followers.wake(key.as_str());
        Ok(())
    }

    async fn read(&self, key: &Key, after: Position) -> Result<Option<Page>, LogError> {
        let logs = self.lock();
        let log = logs.runs.get(key);
        let log = log.filter(|log| log.holder.is_some() || log.expires > Instant::now());
        Ok(log.map(|log| log.page(after)))
    }

    fn follow(&self, key: &Key) -> Following {
        self.followers.follow(key).0
    }

    fn release(&self, key: &Key, epoch: u64) {
        let mut logs = self.lock();
        if let Some(log) = logs.runs.get_mut(key)
            && log.holder == Some(epoch)
        {
            log.holder = None;
        }
        drop(logs);
        self.followers.wake(key.as_str());
    }

    fn forget(&self, _: &Key, _: u64) {}

    async fn close(&self) {}
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

impl Logs {
    /// Drops what is not kept any longer.
    fn expire(&mut self) {
        let now = Instant::now();
        let bytes = &mut self.bytes;
        self.runs.retain(|_, log| {
            let keep = log.holder.is_some() || log.expires > now;
            if !keep {
                *bytes -= log.bytes;
            }
            keep
        });
    }

    /// Makes room until no more than `bytes` are held, each time at the cost of the owner that holds
    /// most by its weight: first what nobody writes to, the one that expires first; then the oldest
    /// entries of the largest.
    fn evict(&mut self, bytes: usize) {
        self.expire();
        while self.bytes > bytes {
            let Some(owner) = self.largest_owner() else {
                return;
            };
            let idle = self.runs.iter();
            let idle = idle.filter(|(_, log)| log.owner == owner && log.holder.is_none());
            if let Some(key) = idle.min_by_key(|(_, log)| log.expires).map(|(key, _)| key) {
                let log = self.runs.remove(&key.clone()).expect("it was just found");
                self.bytes -= log.bytes;
                self.trimmed += log.entries.len() as u64;
                continue;
            }
            let own = self.runs.values_mut().filter(|log| log.owner == owner);
            let Some(largest) = own.max_by_key(|log| log.bytes) else {
                return;
            };
            // Of the last entry of all there is left that it was there.
            let (freed, trimmed) = match largest.entries.len() {
                1 => largest.trim(0, 0),
                _ => largest.trim(largest.bytes / 2, usize::MAX),
            };
            if trimmed == 0 {
                return;
            }
            self.bytes -= freed;
            self.trimmed += trimmed;
        }
    }
}

impl Logs {
    /// The owner that holds most, as one of its weight: it holds at least its share.
    fn largest_owner(&self) -> Option<Owner> {
        let mut held: HashMap<Owner, usize> = HashMap::new();
        for log in self.runs.values() {
            *held.entry(log.owner).or_default() += log.bytes;
        }
        let largest = held
            .into_iter()
            .max_by_key(|(owner, bytes)| bytes / owner.weight());
        largest.map(|(owner, _)| owner)
    }
}

impl RunLog {
    /// Appends, and says how many bytes that took.
    fn push(&mut self, position: Position, payload: Bytes) -> usize {
        let bytes = payload.len() + ENTRY_OVERHEAD;
        self.last = position;
        self.bytes += bytes;
        self.entries.push_back(Entry { position, payload });
        bytes
    }

    /// Drops the oldest entries that are too many; the last one only if none may stay. Gives the
    /// bytes and the entries.
    fn trim(&mut self, bytes: usize, entries: usize) -> (usize, u64) {
        let (before, mut trimmed) = (self.bytes, 0);
        let fewest = entries.min(1);
        while self.entries.len() > fewest && (self.bytes > bytes || self.entries.len() > entries) {
            if let Some(entry) = self.entries.pop_front() {
                self.bytes -= entry.payload.len() + ENTRY_OVERHEAD;
                trimmed += 1;
            }
        }
        (before - self.bytes, trimmed)
    }

    fn page(&self, after: Position) -> Page {
        let begin = self
            .entries
            .partition_point(|entry| entry.position <= after);
        let mut bytes = 0;
        let entries = self.entries.range(begin..).take_while(|entry| {
            let fits = bytes == 0 || bytes + entry.payload.len() <= PAGE_BYTES;
            bytes += entry.payload.len() + 1;
            fits
        });
        Page {
            entries: entries.cloned().collect(),
            last: self.last,
            is_held: self.holder.is_some(),
        }
    }
}
