//! A source: a run's events, recorded as they come.
//!
//! Must hold:
//!
//! - Stored before delivered: a position is told only once the log has it.
//! - What is ready goes to the log as one append; nothing waits for a timer.
//! - A source goes on when its caller leaves, and no slow caller slows it down.
//! - It never fails for its log. When an append fails, what follows goes to its caller directly,
//!   without positions, at the caller's pace; and the log says nothing more: whoever resumes finds
//!   it without a writer, and a gap.
//! - However it ends, its claim is given back.

use std::{sync::Arc, task::Poll};

use bytes::Bytes;
use prost::Message as _;
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
    time::{Instant, timeout_at},
};
use tokio_stream::StreamExt as _;
use tokio_util::future::FutureExt as _;

use super::{
    Events, Streams, is_settled,
    log::{EventLog, Key, LogError, Position, within},
    progress::SharedResume,
};
use crate::{
    error::Error,
    upstream::Caller,
    v1::{RunEvent, RunEventType, run_event::Payload},
};

/// The most events of one append, and their bytes.
const BATCH: (usize, usize) = (256, 256 << 10);

/// The most events that are held until the run has a name.
const UNNAMED: usize = 16;

/// How many events a caller of what is not recorded may be behind.
const DIRECT: usize = 16;

/// Where a source is.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    /// The log that it writes to, and where its own events begin.
    pub(super) log: Option<(Key, Position)>,
    /// From here on nothing is recorded: the rest comes directly.
    pub(super) is_direct: bool,
    /// The last entry that it has written.
    pub(super) stored: Position,
    /// What it wrote, for as long as somebody may read it by this.
    pub(super) kept: Option<Arc<Kept>>,
    /// It came to its end. One that is gone without that leaves the run to others.
    pub(super) is_done: bool,
}

/// A source, as its caller sees it. Dropping it lets the source go on.
#[derive(Debug)]
pub(super) struct Recording {
    pub(super) state: watch::Receiver<State>,
    /// What is not recorded, and the error that it ended with.
    pub(super) direct: mpsc::Receiver<Result<RunEvent, Error>>,
    pub(super) task: AbortHandle,
}

impl Streams {
    /// Records `events` of a run that `resume` will name, in a task of their own.
    pub(super) fn record(
        &self,
        log: &Arc<dyn EventLog>,
        caller: &Caller,
        resume: SharedResume,
        events: Events,
    ) -> Recording {
        self.record_from(log, caller, resume, events, None)
    }

    /// The same, where the log was claimed already.
    pub(super) fn record_from(
        &self,
        log: &Arc<dyn EventLog>,
        caller: &Caller,
        resume: SharedResume,
        events: Events,
        claim: Option<Claim>,
    ) -> Recording {
        let (direct, received) = mpsc::channel(DIRECT);
        let state = watch::Sender::new(State {
            log: claim
                .as_ref()
                .map(|claim| (claim.key.clone(), claim.position)),
            stored: claim
                .as_ref()
                .map_or(Position::START, |claim| claim.position),
            kept: claim.as_ref().map(|claim| Arc::clone(&claim.kept)),
            ..State::default()
        });
        let recording = state.subscribe();
        let source = Source {
            streams: self.clone(),
            log: Arc::clone(log),
            caller: caller.clone(),
            resume,
            claim,
            state,
            direct,
        };
        let ended = self.sources_end.clone();
        let task = async move {
            source
                .run(events)
                .with_cancellation_token_owned(ended)
                .await
        };
        Recording {
            state: recording,
            direct: received,
            task: self.detached.spawn(task).abort_handle(),
        }
    }

    /// Claims a log, within the time that a stream may wait for its store; with `after`, only if
    /// nobody writes to it and that is its last entry.
    pub(super) async fn claim(
        &self,
        log: &Arc<dyn EventLog>,
        key: Key,
        after: Option<Position>,
    ) -> Result<Claim, LogError> {
        let claimed = within(self.log_limits().timeout, log.claim(&key, after));
        let epoch = claimed.await?;
        Ok(Claim {
            log: Arc::clone(log),
            position: Position::new(epoch, 0),
            kept: Arc::new(Kept {
                log: Arc::clone(log),
                key: key.clone(),
                epoch,
            }),
            key,
        })
    }
}

/// The right to write to a log, given back by its drop.
#[derive(Debug)]
pub(super) struct Claim {
    log: Arc<dyn EventLog>,
    key: Key,
    /// The last entry that was written.
    position: Position,
    kept: Arc<Kept>,
}

/// What was written under a claim, at hand on this replica whatever the store does. Its drop forgets
/// it.
#[derive(Debug)]
pub(super) struct Kept {
    log: Arc<dyn EventLog>,
    key: Key,
    epoch: u64,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.log.forget(&self.key, self.epoch);
    }
}

impl Claim {
    /// The log, and the entry that the claim began with, or the last one that was written.
    pub(super) fn place(&self) -> (Key, Position) {
        (self.key.clone(), self.position)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.log.release(&self.key, self.position.epoch);
    }
}

struct Source {
    streams: Streams,
    log: Arc<dyn EventLog>,
    caller: Caller,
    resume: SharedResume,
    claim: Option<Claim>,
    state: watch::Sender<State>,
    direct: mpsc::Sender<Result<RunEvent, Error>>,
}

/// Why a source stops before its events end.
struct Stopped;

impl Source {
    async fn run(mut self, mut events: Events) {
        let over = Instant::now() + self.streams.log_limits().source_age;
        loop {
            let batch = batch(&mut events, &self.resume);
            let Ok(batch) = timeout_at(over, batch).await else {
                tracing::info!("a run is not recorded any longer: --max-source-age");
                return;
            };
            let is_end = batch.is_end;
            if self.pass_on(batch).await.is_err() {
                return;
            }
            if is_end {
                break;
            }
        }
        self.state.send_modify(|state| state.is_done = true);
    }

    async fn pass_on(&mut self, batch: Batch) -> Result<(), Stopped> {
        let events = match self.store(batch.events).await {
            Ok(()) => Vec::new(),
            Err(Some(unstored)) => unstored,
            Err(None) => return Err(Stopped),
        };
        let error = batch.error.map(Err);
        for item in events.into_iter().map(Ok).chain(error) {
            // Nobody else would ever see it.
            self.direct.send(item).await.map_err(|_| Stopped)?;
        }
        Ok(())
    }

    /// Records events. Gives back those that cannot be; `None` if somebody else goes on with the
    /// log.
    async fn store(&mut self, events: Vec<RunEvent>) -> Result<(), Option<Vec<RunEvent>>> {
        if events.is_empty() {
            return Ok(());
        }
        if self.state.borrow().is_direct {
            return Err(Some(events));
        }
        let stored = match &mut self.claim {
            Some(_) => Ok(()),
            None => self.open().await,
        };
        let stored = match stored {
            Ok(()) => self.append(&events).await,
            Err(error) => Err(error),
        };
        match stored {
            Ok(()) => Ok(()),
            Err(LogError::Fenced) => {
                tracing::info!("somebody else goes on with a run's log");
                Err(None)
            }
            Err(error) => {
                self.streams.log_failed(&error);
                let metrics = &self.streams.client.telemetry().metrics().event_log;
                metrics.unrecorded.inc();
                // First, or a delivery that sees the claim given back looks for another writer.
                self.state.send_modify(|state| state.is_direct = true);
                self.claim = None;
                Err(Some(events))
            }
        }
    }

    async fn open(&mut self) -> Result<(), LogError> {
        let resume = self.resume.get();
        if resume.run_id.is_empty() {
            return Err(LogError::Away("the run has no name".to_owned()));
        }
        let key = self
            .streams
            .key(&self.caller, &resume)
            .ok_or(LogError::Fenced)?;
        let claim = self.streams.claim(&self.log, key, None).await?;
        self.state.send_modify(|state| {
            state.stored = claim.position;
            state.log = Some(claim.place());
            state.kept = Some(Arc::clone(&claim.kept));
        });
        self.claim = Some(claim);
        Ok(())
    }

    async fn append(&mut self, events: &[RunEvent]) -> Result<(), LogError> {
        let Some(claim) = &mut self.claim else {
            return Err(LogError::Fenced);
        };
        let limits = self.streams.log_limits();
        let payloads: Vec<Bytes> = events
            .iter()
            .map(|event| event.encode_to_vec().into())
            .collect();
        let first = claim.position.next();
        let is_over = events.last().is_some_and(ends_log);
        let append = self.log.append(&claim.key, first, &payloads, is_over);
        let began = Instant::now();
        within(limits.timeout, append).await?;
        claim.position.sequence += payloads.len() as u64;
        let stored = claim.position;
        let metrics = &self.streams.client.telemetry().metrics().event_log;
        metrics.appended.inc_by(payloads.len() as u64);
        metrics
            .append_seconds
            .observe(began.elapsed().as_secs_f64());
        self.state.send_modify(|state| state.stored = stored);
        Ok(())
    }
}

/// What is ready of a stream.
#[derive(Default)]
struct Batch {
    events: Vec<RunEvent>,
    error: Option<Error>,
    is_end: bool,
}

/// The next event and all that are ready behind it; more, as long as no event names the run.
async fn batch(events: &mut Events, resume: &SharedResume) -> Batch {
    let mut batch = Batch::default();
    let (mut bytes, mut is_named) = (0, resume.names_run());
    loop {
        let next = if batch.events.is_empty() || (!is_named && batch.events.len() < UNNAMED) {
            events.next().await
        } else if batch.events.len() < BATCH.0 && bytes < BATCH.1 {
            match ready(events).await {
                Some(next) => next,
                None => return batch,
            }
        } else {
            return batch;
        };
        match next {
            // The end of the upstream's stream, not of the log.
            Some(Ok(event)) if event.r#type() == RunEventType::Done => {}
            Some(Ok(event)) => {
                bytes += event.encoded_len();
                is_named = is_named || resume.names_run();
                batch.events.push(event);
            }
            Some(Err(error)) => {
                batch.error = Some(error);
                batch.is_end = true;
                return batch;
            }
            None => {
                batch.is_end = true;
                return batch;
            }
        }
    }
}

/// The next item, if it is there.
async fn ready(events: &mut Events) -> Option<Option<Result<RunEvent, Error>>> {
    std::future::poll_fn(|cx| match events.as_mut().poll_next(cx) {
        Poll::Ready(next) => Poll::Ready(Some(next)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// After this event the run's log is over.
pub(super) fn ends_log(event: &RunEvent) -> bool {
    matches!(&event.payload, Some(Payload::Run(run)) if run.status().is_terminal())
}

/// A delivery ends with this event: the run is over, or somebody else has to act.
pub(super) fn ends_delivery(event: &RunEvent) -> bool {
    matches!(&event.payload, Some(Payload::Run(run)) if is_settled(run.status()))
}
