//! The event log: what was sent of a run, for those who come later or from elsewhere.
//!
//! | file | idea |
//! |---|---|
//! | `key.rs` | which log: of one run, as one caller recorded it; and places in it |
//! | `board.rs` | which replica polls a run, and what it found |
//! | `creates.rs` | which replica is at work on a create, and what it made |
//! | `followers.rs` | who waits for more entries |
//! | `memory.rs` | logs in memory, of this replica only |
//! | `redis.rs`, `scripts.rs` | logs that replicas share |
//!
//! Must hold:
//!
//! - **One writer.** Whoever writes has claimed the log: that begins an epoch, with an entry of its
//!   own. An append of an older epoch is refused ([`LogError::Fenced`]): two writers cannot mix.
//! - **Nothing is missing unseen.** Entries are numbered without holes, and the entry that begins an
//!   epoch names the one before it. So a reader sees from the entries alone that some were trimmed.
//! - **No position means two entries**, even if a store loses a log, or the end of one: an epoch is
//!   the time at which it began, in milliseconds, unless the one before was as late.
//! - **Bounded**: each log in entries and bytes, each page in bytes, all of it in time.

mod board;
mod creates;
mod followers;
mod key;
mod memory;
mod redis;
mod scripts;
#[cfg(test)]
mod tests;

use std::{fmt::Debug, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use clap::Args;
use tokio::time::timeout;

use crate::{
    setting::{defaults, some, some_time},
    shares::Owner,
};

pub(super) use board::{Board, PollTurn, STAY};
pub(super) use creates::{CreateTurn, SharedCreate};
pub(super) use followers::{Followers, Following};
pub(super) use key::{BoundPosition, Key, Keys, Position};
pub(super) use memory::MemoryLog;
pub(super) use redis::RedisLog;
pub use redis::RedisStore;

/// The most that one page of a log has, in bytes, unless its first entry alone is larger.
pub(super) const PAGE_BYTES: usize = 256 << 10;

/// Limits of the event log. [`Default`] suits most deployments.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Event log")]
pub struct LogLimits {
    /// The most that all logs take in memory, in bytes; the oldest of the caller that holds most are
    /// dropped.
    #[arg(id = "event-log-bytes", long, default_value_t = 64 << 20, value_parser = some::<usize>)]
    pub bytes: usize,

    /// The most that the log of one run takes, in bytes; its oldest entries are dropped.
    #[arg(id = "event-log-run-bytes", long, default_value_t = 16 << 20, value_parser = some::<usize>)]
    pub run_bytes: usize,

    /// The most entries in the log of one run; its oldest are dropped.
    #[arg(id = "event-log-run-entries", long, default_value = "10000", value_parser = some::<usize>)]
    pub run_entries: usize,

    /// How long a log is kept after its run has ended.
    #[arg(id = "event-log-ttl", long, default_value = "10m", value_parser = some_time)]
    pub ttl: Duration,

    /// How long a log is kept without a new entry while its run has not ended.
    #[arg(id = "event-log-live-ttl", long, default_value = "2h", value_parser = some_time)]
    pub live_ttl: Duration,

    /// How long a live stream waits for the store before it goes on without being recorded.
    #[arg(id = "event-log-timeout", long, default_value = "1s", value_parser = some_time)]
    pub timeout: Duration,

    /// How long nobody else may write to a log after its writer was last heard of.
    #[arg(id = "event-log-lease", long, default_value = "10s", value_parser = some_time)]
    pub lease: Duration,

    /// How long a run is recorded at the longest, whoever reads it.
    #[arg(id = "max-source-age", long, default_value = "1h", value_parser = some_time)]
    pub source_age: Duration,
}

impl Default for LogLimits {
    fn default() -> Self {
        defaults()
    }
}

/// One entry of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) position: Position,
    /// The event; of the first entry of an epoch ([`Position::begins_epoch`]) the position of the
    /// entry before it.
    pub(super) payload: Bytes,
}

impl Entry {
    /// Nothing is missing between `after` and this entry.
    pub(super) fn follows(&self, after: Position) -> bool {
        if self.position.begins_epoch() {
            Position::parse(&self.payload) == Some(after)
        } else {
            self.position == after.next()
        }
    }
}

/// Some of a log, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) entries: Vec<Entry>,
    /// The last entry of the log, be it on this page or not.
    pub(super) last: Position,
    /// Somebody writes: more is to come without a reader's doing.
    pub(super) is_held: bool,
}

/// Why the log did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LogError {
    /// Somebody else writes to it.
    Held,
    /// Somebody else has claimed it since.
    Fenced,
    /// The store does not answer, refuses, or is full.
    Away(String),
}

/// Where logs are kept. The test-suite of all of them is `tests.rs`.
#[async_trait]
pub(super) trait EventLog: Debug + Send + Sync {
    /// Other replicas have the same logs.
    fn is_shared(&self) -> bool;

    /// Begins a new epoch, and gives it. With `after` nobody is driven out, and nothing is claimed
    /// that has become more than the claimer knows: nobody may write to the log, and its last entry
    /// has to be that one ([`LogError::Held`]).
    async fn claim(
        &self,
        key: &Key,
        owner: Owner,
        after: Option<Position>,
    ) -> Result<u64, LogError>;

    /// Appends entries from `first` on. What was stored already is not stored again, so that this
    /// can be repeated. After the run's last event, `is_over`.
    async fn append(
        &self,
        key: &Key,
        first: Position,
        payloads: &[Bytes],
        is_over: bool,
    ) -> Result<(), LogError>;

    /// The entries after a position, as many as fit on a page; `None` if there is no such log.
    async fn read(&self, key: &Key, after: Position) -> Result<Option<Page>, LogError>;

    /// Waits for what comes after the entries that are read from now on.
    fn follow(&self, key: &Key) -> Following;

    /// The writer of this epoch is done. Does not wait. What it wrote can be read on this replica
    /// even if the store goes away, until it is forgotten.
    fn release(&self, key: &Key, epoch: u64);

    /// Nobody on this replica needs what the writer of this epoch wrote to be at hand any longer.
    fn forget(&self, key: &Key, epoch: u64);

    /// What replicas tell each other of a run that they poll; `None` if there is no other replica.
    /// Who polls is taken to live for as long as `lease` after it did so, at least.
    fn board(&self, _key: &Key, _lease: Duration) -> Option<Board> {
        None
    }

    /// What replicas tell each other of a create with a `request_id`, of a request with this
    /// fingerprint; `None` if there is no other replica.
    fn create(&self, _key: &Key, _fingerprint: &str) -> Option<SharedCreate> {
        None
    }

    /// Tells all replicas that a run was changed.
    async fn changed(&self, _key: &Key) {}

    /// From here on `heard` is told which runs other replicas have changed.
    fn on_change(&self, _heard: Box<dyn Fn(&str) + Send + Sync>) {}

    /// Gives all claims of this replica away, within the time that a store may take.
    async fn close(&self);
}

/// Does what needs the store, within a time.
pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, LogError>>,
) -> Result<T, LogError> {
    timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(LogError::Away(format!("no answer within {limit:?}"))))
}
