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

use std::{future::poll_fn, mem::take, pin::pin, sync::Arc, task::Poll};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
    time::{Instant, sleep},
};
use tokio_util::future::FutureExt as _;

use super::{
    Events, Streams,
    event::StreamedEvent,
    is_settled,
    log::{Entry, EventLog, Key, LogError, Position, within},
    progress::SharedResume,
};
use crate::{
    error::Error,
    shares::Owner,
    upstream::Caller,
    v1::{RunEvent, RunEventType, run_event::Payload},
    wire,
};

/// The most events of one append, and their bytes.
const BATCH: (usize, usize) = (256, 256 << 10);

/// How much of a batch lies together in memory, in bytes: for as long as any of it is kept.
const TOGETHER: usize = 16 << 10;

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
    /// What it has written last. A delivery that is no further behind need not read it.
    pub(super) newest: Option<Arc<Stored>>,
    /// What it wrote, for as long as somebody may read it by this.
    pub(super) kept: Option<Arc<Kept>>,
    /// It came to its end. One that is gone without that leaves the run to others.
    pub(super) is_done: bool,
}

/// Events that are in the log.
#[derive(Debug)]
pub(super) struct Stored {
    /// The position of the first.
    pub(super) first: Position,
    events: Vec<Bytes>,
}

impl Stored {
    pub(super) fn entries(&self) -> impl Iterator<Item = Entry> {
        self.events.iter().zip(0..).map(|(event, index)| Entry {
            position: Position::new(self.first.epoch, self.first.sequence + index),
            payload: event.clone(),
        })
    }
}

/// A source, as its caller sees it. Dropping it lets the source go on.
#[derive(Debug)]
pub(super) struct Recording {
    pub(super) state: watch::Receiver<State>,
    /// What is not recorded, and the error that it ended with.
    pub(super) direct: mpsc::Receiver<Result<StreamedEvent, Error>>,
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
        owner: Owner,
        after: Option<Position>,
    ) -> Result<Claim, LogError> {
        let claimed = within(self.log_limits().timeout, log.claim(&key, owner, after));
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
    direct: mpsc::Sender<Result<StreamedEvent, Error>>,
}

/// Why a source stops before its events end.
struct Stopped;

impl Source {
    async fn run(mut self, mut events: Events) {
        let mut over = pin!(sleep(self.streams.log_limits().source_age));
        loop {
            let batch = tokio::select! {
                biased;
                () = &mut over => {
                    tracing::info!("a run is not recorded any longer: --max-source-age");
                    return;
                }
                batch = batch(&mut events, &self.resume) => batch,
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

    async fn pass_on(&mut self, mut batch: Batch) -> Result<(), Stopped> {
        self.store(&mut batch).await?;
        let unstored = batch.events.into_iter().map(|event| {
            let read = StreamedEvent::read(event, None);
            Ok(read.expect("it was just encoded"))
        });
        for item in unstored.chain(batch.error.map(Err)) {
            // Nobody else would ever see it.
            self.direct.send(item).await.map_err(|_| Stopped)?;
        }
        Ok(())
    }

    /// Records a batch's events, and takes them from it. Those that cannot be recorded stay there.
    /// Stops if somebody else goes on with the log.
    async fn store(&mut self, batch: &mut Batch) -> Result<(), Stopped> {
        if batch.events.is_empty() || self.state.borrow().is_direct {
            return Ok(());
        }
        let stored = match &mut self.claim {
            Some(_) => Ok(()),
            None => self.open().await,
        };
        let stored = match stored {
            Ok(()) => self.append(batch).await,
            Err(error) => Err(error),
        };
        match stored {
            Ok(()) => Ok(()),
            Err(LogError::Fenced) => {
                tracing::info!("somebody else goes on with a run's log");
                Err(Stopped)
            }
            Err(error) => {
                self.streams.log_failed(&error);
                let metrics = &self.streams.client.telemetry().metrics().event_log;
                metrics.unrecorded.inc();
                // First, or a delivery that sees the claim given back looks for another writer.
                self.state.send_modify(|state| state.is_direct = true);
                self.claim = None;
                Ok(())
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
        let owner = self.caller.owner;
        let claim = self.streams.claim(&self.log, key, owner, None).await?;
        self.state.send_modify(|state| {
            state.stored = claim.position;
            state.log = Some(claim.place());
            state.kept = Some(Arc::clone(&claim.kept));
        });
        self.claim = Some(claim);
        Ok(())
    }

    async fn append(&mut self, batch: &mut Batch) -> Result<(), LogError> {
        let Some(claim) = &mut self.claim else {
            return Err(LogError::Fenced);
        };
        let limits = self.streams.log_limits();
        let (first, events) = (claim.position.next(), &batch.events);
        let append = self.log.append(&claim.key, first, events, batch.is_over);
        let began = Instant::now();
        within(limits.timeout, append).await?;
        claim.position.sequence += events.len() as u64;
        let (stored, events) = (claim.position, take(&mut batch.events));
        let metrics = &self.streams.client.telemetry().metrics().event_log;
        metrics
            .appended
            .inc_by(stored.sequence + 1 - first.sequence);
        metrics
            .append_seconds
            .observe(began.elapsed().as_secs_f64());
        self.state.send_modify(|state| {
            state.stored = stored;
            state.newest = Some(Arc::new(Stored { first, events }));
        });
        Ok(())
    }
}

/// What is ready of a stream.
#[derive(Default)]
struct Batch {
    /// The events, encoded, but for those in `open`.
    events: Vec<Bytes>,
    open: Vec<u8>,
    /// Where each event in `open` ends.
    ends: Vec<usize>,
    bytes: usize,
    /// The last event is the run's end.
    is_over: bool,
    error: Option<Error>,
    /// Nothing comes after it.
    is_end: bool,
}

impl Batch {
    fn push(&mut self, event: &RunEvent) {
        wire::encode(event, |bytes| {
            // One that stays alone takes no more than it needs; behind a second, more are to come.
            if !self.open.is_empty() {
                self.open.reserve(TOGETHER - self.open.len());
            }
            self.open.extend_from_slice(bytes);
        });
        self.ends.push(self.open.len());
        self.is_over = ends_log(event);
        if self.open.len() >= TOGETHER {
            self.close();
        }
    }

    /// Puts the events in `open` to the others.
    fn close(&mut self) {
        self.bytes += self.open.len();
        let together = Bytes::from(take(&mut self.open).into_boxed_slice());
        let mut begin = 0;
        for end in self.ends.drain(..) {
            self.events.push(together.slice(begin..end));
            begin = end;
        }
    }

    fn len(&self) -> usize {
        self.events.len() + self.ends.len()
    }

    fn bytes(&self) -> usize {
        self.bytes + self.open.len()
    }
}

/// The next event and all that are ready behind it, encoded; more, as long as no event names the
/// run.
async fn batch(events: &mut Events, resume: &SharedResume) -> Batch {
    let mut batch = Batch::default();
    let mut is_named = resume.names_run();
    poll_fn(|cx| {
        while batch.len() < BATCH.0 && batch.bytes() < BATCH.1 {
            match events.as_mut().poll_next(cx) {
                Poll::Pending if batch.len() == 0 => return Poll::Pending,
                Poll::Pending if !is_named && batch.len() < UNNAMED => return Poll::Pending,
                Poll::Pending => break,
                // The end of the upstream's stream, not of the log.
                Poll::Ready(Some(Ok(event))) if event.r#type() == RunEventType::Done => {}
                Poll::Ready(Some(Ok(event))) => {
                    is_named = is_named || resume.names_run();
                    batch.push(&event);
                }
                Poll::Ready(end) => {
                    batch.error = end.and_then(Result::err);
                    batch.is_end = true;
                    break;
                }
            }
        }
        Poll::Ready(())
    })
    .await;
    batch.close();
    batch
}

/// After this event the run's log is over.
pub(super) fn ends_log(event: &RunEvent) -> bool {
    matches!(&event.payload, Some(Payload::Run(run)) if run.status().is_terminal())
}

/// A delivery ends with this event: the run is over, or somebody else has to act.
pub(super) fn ends_delivery(event: &RunEvent) -> bool {
    matches!(&event.payload, Some(Payload::Run(run)) if is_settled(run.status()))
}
