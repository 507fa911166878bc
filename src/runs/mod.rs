//! Runs as streams of events: from the upstream's server-sent events, and from polling.
//!
//! | file | idea |
//! |---|---|
//! | `event.rs` | an event as it is sent: a message, or a delta as the log has it |
//! | `received.rs` | one frame of the upstream as an event of the contract |
//! | `progress.rs` | what a stream has sent so far: how to resume it, and what is missing when it is cut |
//! | `live.rs` | the events of a run that this call started; when the upstream's stream is cut, the rest by polling |
//! | `observe.rs` | runs that somebody else started: watching and waiting |
//! | `follow.rs` | a run by polling, for a stream that lost its upstream |
//! | `creates/` | creates that may be repeated, and creates on threads that are busy |
//! | `converse.rs` | `ConverseRun`: all rounds of a run on one stream |
//! | `conversation.rs` | a conversation as an actor: its states, and what happens to it |
//! | `inbox.rs` | what a conversation's caller says: outputs, held until they are asked for |
//! | `record.rs` | a source: a run's events, recorded as they come, whoever reads them |
//! | `log/` | the event log: what was recorded, in memory or shared by replicas |
//! | `delivery.rs` | from the log to one caller |
//! | `successor.rs` | what goes on with a run whose log nobody writes to |
//! | `resume.rs` | `ResumeRun`: a delivery of a run that somebody else began |
//! | `reader.rs` | what a stream holds for its reader, and what happens when the reader leaves |
//! | `watch.rs` | who watches runs: one poller per run and caller's identity, however many watch |
//! | `poller.rs` | the task that polls one run |
//! | `polls.rs` | what is known of all polls, under one lock |
//! | `fetch.rs` | what a poll reads: the run, its steps, its messages |
//! | `changes.rs` | states of a run as events |
//! | `heartbeat.rs` | signs of life in quiet streams |
//!
//! Must hold: no stream ends quietly in the middle. It ends with OK after the run's last state (or
//! after the run came to require action), or with a status that says how to resume. Streams are
//! pulled: nothing is read from the upstream, and nothing is held, for a reader that does not read.
//! Dropping a stream lets go of all that it holds at once.

mod changes;
mod conversation;
mod converse;
mod creates;
mod delivery;
mod event;
mod fetch;
mod follow;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod heartbeat;
mod inbox;
mod live;
mod log;
mod observe;
mod poller;
mod polls;
mod progress;
mod reader;
mod received;
mod record;
mod resume;
mod successor;
mod watch;

use std::{pin::Pin, sync::Arc, time::Duration};

use clap::Args;
use http::HeaderMap;
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use converse::Inbound;
pub use creates::CreateLimits;
pub use event::{EncodedDelta, StreamedEvent};
pub use log::{LogLimits, RedisStore};
pub use polls::PollLimits;
pub use progress::SharedResume;

use log::{EventLog, Key, Keys, LogError, MemoryLog, RedisLog};

use crate::{
    error::{Error, Resume},
    setting::{defaults, some, some_time, time},
    shares::{Limit, Permit, Shares},
    telemetry::{EventLogMetrics, OncePerSecond},
    upstream::{Caller, Client},
    v1::{RunEvent, RunStatus, StreamOptions},
};

/// A stream of events, as what makes them gives them.
type Events = Pin<Box<dyn Stream<Item = Result<RunEvent, Error>> + Send>>;

/// A stream of events, as they are sent.
pub type StreamedEvents = Pin<Box<dyn Stream<Item = Result<StreamedEvent, Error>> + Send>>;

/// Events that are sent as they are made.
fn streamed(
    events: impl Stream<Item = Result<RunEvent, Error>> + Send + 'static,
) -> StreamedEvents {
    Box::pin(events.map(|event| event.map(StreamedEvent::Message)))
}

/// Events, and headers of the upstream's first answer that the caller may see.
pub struct Started {
    /// The headers: none, if the events come from polling.
    pub headers: HeaderMap,
    /// The events.
    pub events: StreamedEvents,
}

impl From<StreamedEvents> for Started {
    /// Events by polling.
    fn from(events: StreamedEvents) -> Self {
        Self {
            headers: HeaderMap::new(),
            events,
        }
    }
}

/// Limits of streams. [`Default`] suits most deployments.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Streams")]
pub struct StreamLimits {
    /// Live event streams of the upstream at a time; one more is refused at once. Each has a
    /// connection of its own.
    #[arg(id = "max-live-streams", long, default_value = "4096", value_parser = some::<usize>)]
    pub live: usize,

    /// How long the upstream may be silent on a live stream before the gateway looks at the run
    /// itself.
    #[arg(id = "stream-idle-timeout", long, default_value = "1m", value_parser = some_time)]
    pub idle: Duration,

    /// How long to wait for the upstream's `done` after a run's last event: some never send it.
    #[arg(id = "done-timeout", long, default_value = "2s", value_parser = time)]
    pub linger: Duration,

    /// How long `WaitRun` waits when nobody says how long.
    // A run expires ten minutes after it was created.
    #[arg(id = "max-wait", long, default_value = "15m", value_parser = time)]
    pub wait: Duration,

    /// How long the cancellation of a run whose caller left may take.
    #[arg(id = "cancel-timeout", long, default_value = "30s", value_parser = some_time)]
    pub cancel_timeout: Duration,

    /// The most tool outputs that are held for a conversation, in bytes; each counts 256 more than
    /// its text.
    #[arg(id = "max-held-output-bytes", long, default_value_t = 16 << 20, value_parser = some::<usize>)]
    pub held_output_bytes: usize,

    /// Polling.
    #[command(flatten)]
    pub poll: PollLimits,

    /// Creates that may be repeated, and creates that wait.
    #[command(flatten)]
    pub creates: CreateLimits,

    /// Where resumable streams are recorded.
    #[arg(skip)]
    pub store: LogStore,

    /// The event log.
    #[command(flatten)]
    pub log: LogLimits,
}

/// Where resumable streams are recorded.
#[derive(Debug, Clone, Default)]
pub enum LogStore {
    /// Nowhere: no stream is resumable.
    Off,
    /// In the memory of this replica.
    #[default]
    Memory,
    /// In a store that replicas share.
    Redis(Box<RedisStore>),
}

impl Default for StreamLimits {
    fn default() -> Self {
        defaults()
    }
}

/// The source of all streams of one gateway. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Streams {
    client: Client,
    watches: watch::PollerRegistry,
    /// Creates by their `request_id`.
    remembered: creates::Remembered,
    /// Creates that wait for busy threads.
    queues: creates::Queues,
    live: Shares,
    /// What goes on after its caller has left.
    detached: TaskTracker,
    /// The event log, if there is one, and what makes its keys.
    log: Option<Log>,
    /// Cancelled when nothing is recorded any longer.
    sources_end: CancellationToken,
    log_failures: Arc<OncePerSecond>,
    limits: Arc<StreamLimits>,
}

impl Streams {
    /// Streams of the runs of one upstream. Has to be called in a runtime.
    ///
    /// # Errors
    ///
    /// What is wrong with the event log's store. It need not be there.
    pub fn new(client: Client, limits: StreamLimits) -> Result<Self, String> {
        let log = open_log(&limits, &client.telemetry().metrics().event_log)?;
        let poll = limits.poll.clone();
        Ok(Self {
            watches: watch::PollerRegistry::new(client.clone(), poll, log.clone()),
            remembered: creates::Remembered::new(limits.creates.request_ids, log.as_ref()),
            queues: creates::Queues::default(),
            client,
            live: Shares::new(Limit {
                what: "live streams",
                max: limits.live,
                flag: "--max-live-streams",
            }),
            detached: TaskTracker::new(),
            log,
            sources_end: CancellationToken::new(),
            log_failures: Arc::default(),
            limits: Arc::new(limits),
        })
    }

    /// Ends all recording, and gives the runs to other replicas. Waits no longer than for the store
    /// ([`LogLimits::timeout`]).
    pub async fn close(&self) {
        self.sources_end.cancel();
        if let Some((log, _)) = &self.log {
            log.close().await;
        }
    }

    /// The event log, if a stream with these options needs it.
    fn log_for(&self, options: Options) -> Result<Option<Arc<dyn EventLog>>, Error> {
        if !options.resumable {
            return Ok(None);
        }
        let (log, _) = self.log.as_ref().ok_or_else(|| {
            Error::invalid(
                "options.resumable",
                "must not be set: this gateway keeps no event log",
            )
        })?;
        Ok(Some(Arc::clone(log)))
    }

    /// The key of a run's log, as this caller records it; `None` if there is no log.
    fn key(&self, caller: &Caller, resume: &Resume) -> Option<Key> {
        let (_, keys) = self.log.as_ref()?;
        Some(keys.key(caller, &resume.thread_id, &resume.run_id))
    }

    fn log_limits(&self) -> &LogLimits {
        &self.limits.log
    }

    /// The log did not do what a stream needed: the stream goes on without it.
    fn log_failed(&self, error: &LogError) {
        let metrics = self.client.telemetry().metrics();
        metrics.event_log.failed.inc();
        if let Some(suppressed) = self.log_failures.due() {
            tracing::warn!(?error, suppressed, "a stream goes on without the event log");
        }
    }

    /// A permit for one more live stream of the upstream.
    fn live_permit(&self, caller: &Caller) -> Result<Permit, Error> {
        Ok(self.live.take(caller.owner, 1)?)
    }

    /// The tasks that go on after their callers have left: cancellations that were asked for.
    /// Whoever ends the program waits for them.
    pub fn detached(&self) -> TaskTracker {
        self.detached.clone()
    }

    /// Tells whoever watches a run that it was changed by way of this gateway, so that they need
    /// not wait for the next poll.
    pub fn touched(&self, thread_id: &str, run_id: &str) {
        self.watches.touched(thread_id, run_id);
    }
}

/// A log, and what makes its keys.
type Log = (Arc<dyn EventLog>, Keys);

fn open_log(limits: &StreamLimits, metrics: &EventLogMetrics) -> Result<Option<Log>, String> {
    let log_limits = Arc::new(limits.log.clone());
    Ok(match &limits.store {
        LogStore::Off => None,
        LogStore::Memory => {
            let log = MemoryLog::new(log_limits, metrics.clone());
            Some((Arc::new(log), Keys::random()))
        }
        LogStore::Redis(store) => {
            let log = RedisLog::new(store, log_limits, metrics.clone())?;
            Some((Arc::new(log), Keys::new(store.secret())))
        }
    })
}

/// The run will not change unless somebody acts.
fn is_settled(status: RunStatus) -> bool {
    status == RunStatus::RequiresAction || status.is_terminal()
}

/// The options of a stream, checked.
#[derive(Debug, Clone, Copy, Default)]
struct Options {
    cancel_on_disconnect: bool,
    heartbeat: Option<Duration>,
    include_missed_messages: bool,
    resumable: bool,
}

impl Options {
    fn new(options: Option<&StreamOptions>) -> Result<Self, Error> {
        let Some(options) = options else {
            return Ok(Self::default());
        };
        let field = "options.heartbeat_interval";
        let heartbeat = duration(field, options.heartbeat_interval.as_ref())?;
        if heartbeat.is_some_and(|interval| interval < Duration::from_secs(1)) {
            return Err(Error::invalid(field, "must be at least one second"));
        }
        Ok(Self {
            cancel_on_disconnect: options.cancel_on_disconnect,
            heartbeat,
            include_missed_messages: options.include_missed_messages,
            resumable: options.resumable,
        })
    }
}

impl Options {
    /// The options of a stream that records nothing of its own.
    fn of_reading(options: Option<&StreamOptions>) -> Result<Self, Error> {
        let options = Self::new(options)?;
        if options.resumable {
            let description = "must not be set: this stream records nothing of its own";
            return Err(Error::invalid("options.resumable", description));
        }
        Ok(options)
    }
}

/// A duration of the request that must not be negative.
fn duration(
    field: &str,
    duration: Option<&prost_types::Duration>,
) -> Result<Option<Duration>, Error> {
    let convert = |duration: &prost_types::Duration| Duration::try_from(*duration);
    duration
        .map(convert)
        .transpose()
        .map_err(|_| Error::invalid(field, "must not be negative"))
}
