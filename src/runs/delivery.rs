//! From the log to one caller.
//!
//! Must hold:
//!
//! - **Each event once, in order.** A delivery has one place in the log and reads on from it. What
//!   was trimmed is a gap in its place. So is what the store has lost: a place behind the end of a
//!   log whose run is not over is one of a caller that knows more than the store.
//! - **Never silence.** While somebody writes, a delivery waits. If nobody does and the run is not
//!   over, it takes over: it claims the log, reads the run, and records a gap and the run's further
//!   states, which all other deliveries see, too. If the log cannot be had, it says so by a gap and
//!   goes on by polling for its own caller.
//! - A slow caller slows nobody but itself.

use std::{
    collections::HashSet,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
    vec,
};

use async_stream::try_stream;
use tokio::time::sleep;
use tokio_stream::{Stream, StreamExt as _};

use super::{
    Events, Options, StreamedEvents, Streams,
    event::StreamedEvent,
    fetch::Parts,
    follow::Follow,
    log::{Entry, EventLog, Following, Key, LogError, Page, Position, within},
    polls::Interest,
    progress::{Progress, SharedResume, gap_event},
    record::{Claim, Recording, Stored, ends_log},
    successor::Successor,
};
use crate::{
    error::{Delivery as Sent, Error, Idempotency},
    upstream::Caller,
    v1::{Gap, run_event::Payload},
};

/// How often a delivery looks at a log that it was not woken for: hints may get lost.
const LOOK: Duration = Duration::from_secs(1);

/// One caller's delivery.
pub(super) struct Delivery {
    streams: Streams,
    /// The log; without one there is nothing but polling.
    log: Option<Arc<dyn EventLog>>,
    caller: Caller,
    progress: Progress,
    options: Options,
    /// The log, and the last entry that was read of it; not known before the run has a name.
    log_position: Option<(Key, Position)>,
    following: Option<Following>,
    /// What this replica records of the run for this delivery.
    recording: Option<Recording>,
    /// What goes on for this caller alone: the log is not to be had.
    unrecorded: Option<Events>,
    /// The messages that the gap named which was just sent.
    missed: HashSet<String>,
    /// What goes on with a log that nobody writes to.
    successor: Successor,
    /// The last event was read.
    is_over: bool,
}

/// What a delivery needs to know of its source.
struct Ahead {
    /// The last entry that it has written.
    stored: Position,
    /// It writes no more.
    is_last: bool,
    /// What it has written last, if that is next to be delivered.
    next: Option<Arc<Stored>>,
}

/// What a delivery gives next.
enum Next {
    Events(Vec<StreamedEvent>),
    End,
}

impl Delivery {
    /// The events of a source, from its first on.
    pub(super) fn of(
        streams: &Streams,
        log: &Arc<dyn EventLog>,
        caller: Caller,
        resume: SharedResume,
        options: Options,
        recording: Recording,
    ) -> Self {
        let progress = Progress::new(resume, "", "");
        Self::new(
            streams,
            Some(log),
            caller,
            progress,
            options,
            Some(recording),
        )
    }

    fn new(
        streams: &Streams,
        log: Option<&Arc<dyn EventLog>>,
        caller: Caller,
        progress: Progress,
        options: Options,
        recording: Option<Recording>,
    ) -> Self {
        Self {
            streams: streams.clone(),
            log: log.cloned(),
            caller,
            progress,
            options,
            log_position: None,
            following: None,
            recording,
            unrecorded: None,
            missed: HashSet::new(),
            successor: Successor::Polling,
            is_over: false,
        }
    }

    /// The events of a conversation: it goes on after the run came to require action.
    pub(super) fn of_conversation(mut self) -> Self {
        self.successor = Successor::begun();
        self
    }

    /// A conversation takes up a run that was recorded: `begin` begins it with its caller's `inbox`
    /// once it is its turn. Gives the inbox back if the run was not recorded.
    pub(super) fn converse<I: Send + 'static>(
        mut self,
        inbox: I,
        begin: impl FnOnce(I, Progress, Follow) -> Events + Send + 'static,
    ) -> Result<Self, I> {
        let Some((_, known)) = self.log_position.as_mut() else {
            return Err(inbox);
        };
        // The whole log is read, since it tells how far the conversation has come.
        let known = std::mem::replace(known, Position::START);
        let begin = |before, follow| begin(inbox, before, follow);
        self.successor = Successor::conversation(Box::new(begin), &self.progress.resume(), known);
        Ok(self)
    }

    /// The events after a position; all of them, if it is empty. Looks whether there is such a log
    /// before it gives anything.
    pub(super) async fn after(
        streams: &Streams,
        caller: Caller,
        progress: Progress,
        options: Options,
        position: (&str, &str),
    ) -> Result<Self, Error> {
        let resume = progress.resume();
        let key = streams.key(&caller, &resume);
        let log = streams.log.as_ref().map(|(log, _)| log);
        let mut delivery = Self::new(streams, log, caller, progress, options, None);
        let (field, position) = position;
        let Some(key) = key else {
            delivery.begin().await?;
            return Ok(delivery);
        };
        match delivery.read(&key, Position::START).await {
            Ok(Some(page)) => {
                let after = match position {
                    "" => Some(Position::START),
                    text => Position::from_text(text, &key),
                };
                let after = match after {
                    Some(after) if after > page.last => {
                        let may_be = delivery.may_have_lost(&key, page.last).await;
                        may_be.then_some(after)
                    }
                    after => after,
                };
                let after =
                    after.ok_or_else(|| Error::invalid(field, "is no position of this run"))?;
                delivery.recall(&key, after).await;
                delivery.log_position = Some((key, after));
            }
            Ok(None) => delivery.begin().await?,
            Err(error) => {
                streams.log_failed(&error);
                delivery.begin().await?;
            }
        }
        Ok(delivery)
    }

    /// Whether entries behind this last one may have been lost, with which a caller was sent away: a
    /// store that fails may lose the newest. Not those behind a run's end.
    async fn may_have_lost(&mut self, key: &Key, last: Position) -> bool {
        if !self.log.as_ref().is_some_and(|log| log.is_shared()) {
            return false;
        }
        let Some(before) = last.sequence.checked_sub(1) else {
            return true;
        };
        let page = self.read(key, Position::new(last.epoch, before)).await;
        let Ok(Some(page)) = page else {
            return true;
        };
        let last = page.entries.first();
        let last = last.and_then(|entry| StreamedEvent::read(entry.payload.clone(), None).ok());
        !last.is_some_and(|event| event.message().is_some_and(ends_log))
    }

    /// If the last event that the caller has is a gap: what it named.
    async fn recall(&mut self, key: &Key, after: Position) {
        let Some(before) = after.sequence.checked_sub(1) else {
            return;
        };
        if let Ok(Some(page)) = self.read(key, Position::new(after.epoch, before)).await
            && let Some(entry) = page.entries.into_iter().next()
            && entry.position == after
        {
            self.event(key, entry);
        }
    }

    /// Begins without a log.
    async fn begin(&mut self) -> Result<(), Error> {
        let began = self.begin_to_poll().await;
        began.map_err(|error| self.interrupted(error))
    }

    /// All that comes, until the run is over or somebody else has to act. When `leave` is ready the
    /// stream ends, to be resumed elsewhere.
    pub(super) fn events(
        mut self,
        leave: impl Future<Output = ()> + Send + 'static,
    ) -> StreamedEvents {
        let call = self.progress.shared();
        let batches = try_stream! {
            let mut leave = Box::pin(leave);
            loop {
                let next = tokio::select! {
                    next = self.next() => next,
                    () = &mut leave => {
                        self.leave();
                        Err(Arc::new(Error::Draining))
                    }
                };
                match next.map_err(|error| self.interrupted(error))? {
                    Next::Events(events) => {
                        for event in &events {
                            self.progress.will_send(event);
                        }
                        yield events;
                    }
                    Next::End => break,
                }
            }
        };
        Box::pin(OneByOne {
            batches: Box::pin(batches),
            ready: Vec::new().into_iter(),
            call,
        })
    }

    /// What follows. May be dropped while it waits: nothing is lost.
    async fn next(&mut self) -> Result<Next, Arc<Error>> {
        loop {
            if self.is_over {
                return Ok(Next::End);
            }
            if self.unrecorded.is_some() {
                return self.go_on_unrecorded().await;
            }
            let Some((key, after)) = self.find_log().await? else {
                if let Some(next) = self.directly().await? {
                    return Ok(next);
                }
                continue;
            };
            let Some(log) = self.log.clone() else {
                self.begin_to_poll().await?;
                continue;
            };
            // Looked at before the log is read: what it wrote until now is there then.
            let source = self.source(after);
            // The last entry that is this delivery's: after it nothing is recorded.
            let stored = source
                .as_ref()
                .and_then(|it| it.is_last.then_some(it.stored));
            if stored.is_some_and(|stored| after >= stored) {
                if let Some(next) = self.directly().await? {
                    return Ok(next);
                }
                continue;
            }
            match &source {
                Some(source) if after == source.stored => {
                    self.wait_for_source().await;
                    continue;
                }
                Some(Ahead {
                    next: Some(next), ..
                }) => {
                    let events = self.take(&key, next.entries());
                    if events.is_empty() {
                        continue;
                    }
                    return Ok(Next::Events(events));
                }
                Some(_) => {}
                None => {
                    let following = self.following.get_or_insert_with(|| log.follow(&key));
                    following.begin_to_read();
                }
            }
            let mut page = match self.read(&key, after).await {
                Ok(Some(page)) => page,
                // The source finds out for itself, soon.
                _ if source.is_some() && stored.is_none() => {
                    self.wait().await;
                    continue;
                }
                lost => {
                    if let Err(error) = lost {
                        self.streams.log_failed(&error);
                    }
                    self.begin_to_poll().await?;
                    continue;
                }
            };
            if let Some(stored) = stored {
                // What is behind it comes directly, whatever became of it in the log.
                page.entries.retain(|entry| entry.position <= stored);
            }
            let is_empty = page.entries.is_empty();
            let events = self.take(&key, page.entries.into_iter());
            if !events.is_empty() {
                return Ok(Next::Events(events));
            }
            if !is_empty {
                continue;
            }
            let last = stored.unwrap_or(page.last);
            if after < last {
                // All that was left was trimmed: nobody knows what it was.
                self.log_position = Some((key, last));
                return Ok(Next::Events(vec![unknown_gap()]));
            }
            if source.is_some() {
                self.wait().await;
                continue;
            }
            self.recording = None;
            if page.is_held && !self.successor.is_next() {
                self.wait().await;
            } else {
                self.take_over(&log, &key).await?;
            }
        }
    }

    /// The log and the place in it, once the source has one; `None` if its events come directly.
    async fn find_log(&mut self) -> Result<Option<(Key, Position)>, Arc<Error>> {
        while self.log_position.is_none() {
            let Some(recording) = &mut self.recording else {
                return Ok(None);
            };
            {
                let state = recording.state.borrow_and_update();
                if state.is_direct {
                    return Ok(None);
                }
                self.log_position.clone_from(&state.log);
            }
            if self.log_position.is_none() && recording.state.changed().await.is_err() {
                return Ok(None);
            }
        }
        Ok(self.log_position.clone())
    }

    async fn read(&mut self, key: &Key, after: Position) -> Result<Option<Page>, LogError> {
        let Some(log) = &self.log else {
            return Ok(None);
        };
        within(self.streams.log_limits().timeout, log.read(key, after)).await
    }

    /// The source of this delivery, unless it is gone before its end; as it is for one that has read
    /// up to `after`.
    fn source(&mut self, after: Position) -> Option<Ahead> {
        let recording = self.recording.as_mut()?;
        let is_gone = recording.state.has_changed().is_err();
        let state = recording.state.borrow_and_update();
        let is_last = state.is_direct || state.is_done;
        let newest = state.newest.as_ref();
        (!is_gone || is_last).then(|| Ahead {
            stored: state.stored,
            is_last,
            next: newest.filter(|it| it.first == after.next()).cloned(),
        })
    }

    /// Waits until the source has stored more, or is gone. It tells so itself.
    async fn wait_for_source(&mut self) {
        if let Some(recording) = &mut self.recording {
            _ = recording.state.changed().await;
        }
    }

    /// Waits until there may be more.
    async fn wait(&mut self) {
        let changed = async {
            match &mut self.recording {
                Some(recording) => _ = recording.state.changed().await,
                None => std::future::pending().await,
            }
        };
        let more = async {
            match &mut self.following {
                Some(following) => following.more().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changed => {}
            () = more => {}
            () = sleep(LOOK) => {}
        }
    }

    /// The events of these entries, each with its position.
    fn take(&mut self, key: &Key, entries: impl Iterator<Item = Entry>) -> Vec<StreamedEvent> {
        let mut events = Vec::with_capacity(entries.size_hint().0);
        for entry in entries {
            let Some((_, log_position)) = &mut self.log_position else {
                break;
            };
            if !entry.follows(*log_position) && entry.position > self.successor.known().next() {
                // Nobody knows what it was.
                events.push(unknown_gap());
            }
            *log_position = entry.position;
            if let Some(event) = self.event(key, entry) {
                self.is_over = self.successor.ends_with(&event);
                events.push(event);
            }
            if self.is_over {
                break;
            }
        }
        let metrics = &self.streams.client.telemetry().metrics().event_log;
        metrics.delivered.inc_by(events.len() as u64);
        events
    }

    fn event(&mut self, key: &Key, entry: Entry) -> Option<StreamedEvent> {
        if entry.position.begins_epoch() {
            return None;
        }
        let position = entry.position.bound_to(key);
        let Ok(event) = StreamedEvent::read(entry.payload, Some(position)) else {
            tracing::error!("an entry of the event log is not what was written");
            return Some(unknown_gap());
        };
        self.successor.note(&event);
        if entry.position <= self.successor.known() {
            return None;
        }
        self.is_wanted(&event).then_some(event)
    }

    /// Messages that were missed are recorded behind their gap: who did not ask for them goes
    /// without.
    fn is_wanted(&mut self, event: &StreamedEvent) -> bool {
        let Some(event) = event.message() else {
            if !self.missed.is_empty() {
                self.missed.clear();
            }
            return true;
        };
        match &event.payload {
            Some(Payload::Gap(gap)) if !self.options.include_missed_messages => {
                self.missed = gap.message_ids.iter().cloned().collect();
                true
            }
            Some(Payload::Message(message))
                if event.synthesized && self.missed.contains(&message.id) =>
            {
                false
            }
            _ => {
                self.missed.clear();
                true
            }
        }
    }

    /// What the source did not record; `None` if it is gone and others have to go on.
    async fn directly(&mut self) -> Result<Option<Next>, Arc<Error>> {
        let Some(recording) = &mut self.recording else {
            self.begin_to_poll().await?;
            return Ok(None);
        };
        match recording.direct.recv().await {
            item @ Some(_) => self.unrecorded_next(item).map(Some),
            None if recording.state.borrow().is_done => Ok(Some(Next::End)),
            None => {
                let is_direct = recording.state.borrow().is_direct;
                self.recording = None;
                if is_direct || self.log_position.is_none() {
                    self.begin_to_poll().await?;
                }
                Ok(None)
            }
        }
    }

    /// Goes on with a log that nobody writes to.
    async fn take_over(&mut self, log: &Arc<dyn EventLog>, key: &Key) -> Result<(), Arc<Error>> {
        let log_position = self
            .log_position
            .as_ref()
            .map_or(Position::START, |(_, it)| *it);
        let is_conversation = self.successor.is_conversation();
        let (read, last) = if is_conversation {
            // It has read everything.
            (None, log_position)
        } else {
            match self.read_all(key).await {
                Ok(Some((read, last))) => (Some(read), last),
                Ok(None) => return self.begin_to_poll().await,
                Err(error) => {
                    self.streams.log_failed(&error);
                    return self.begin_to_poll().await;
                }
            }
        };
        if log_position < last {
            // Somebody else was first: that is read before anything else.
            return Ok(());
        }
        if read.as_ref().is_some_and(Progress::is_terminal) {
            self.is_over = true;
            return Ok(());
        }
        let after = (!is_conversation).then_some(last);
        let owner = self.caller.owner;
        match self.streams.claim(log, key.clone(), owner, after).await {
            Ok(claim) => self.go_on(log, read.as_ref(), claim),
            // Somebody else was first.
            Err(LogError::Held | LogError::Fenced) => {
                self.wait().await;
                Ok(())
            }
            Err(error) => {
                self.streams.log_failed(&error);
                self.begin_to_poll().await
            }
        }
    }

    /// What the whole log tells, and its last entry; `None` if it is gone.
    async fn read_all(&mut self, key: &Key) -> Result<Option<(Progress, Position)>, LogError> {
        let resume = self.progress.resume();
        let mut progress =
            Progress::new(SharedResume::default(), &resume.thread_id, &resume.run_id);
        let mut after = Position::START;
        loop {
            let Some(page) = self.read(key, after).await? else {
                return Ok(None);
            };
            for entry in &page.entries {
                after = entry.position;
                if !entry.position.begins_epoch()
                    && let Ok(event) = StreamedEvent::read(entry.payload.clone(), None)
                {
                    progress.will_send(&event);
                }
            }
            if page.entries.is_empty() {
                return Ok(Some((progress, page.last)));
            }
        }
    }

    /// Records what the successor gives, for all who read this log.
    fn go_on(
        &mut self,
        log: &Arc<dyn EventLog>,
        read: Option<&Progress>,
        claim: Claim,
    ) -> Result<(), Arc<Error>> {
        let follow = self.follow_run()?;
        let read = read.unwrap_or(&self.progress);
        let (resume, events) = self.successor.begin(read, follow)?;
        let metrics = &self.streams.client.telemetry().metrics().event_log;
        metrics.takeovers.inc();
        let (streams, caller) = (&self.streams, &self.caller);
        self.recording = Some(streams.record_from(log, caller, resume, events, Some(claim)));
        Ok(())
    }

    fn follow_run(&self) -> Result<Follow, Arc<Error>> {
        let resume = self.progress.resume();
        let watch = self.streams.watches.join(
            &self.caller,
            &resume.thread_id,
            &resume.run_id,
            Interest::Now(Parts::Messages),
        );
        Ok(Follow::resumed(watch.map_err(Arc::new)?))
    }

    /// From here on the successor goes on for this caller alone, by polling, and the first event is
    /// a gap.
    async fn begin_to_poll(&mut self) -> Result<(), Arc<Error>> {
        self.recording = None;
        if self.progress.resume().run_id.is_empty() {
            return Err(Arc::new(Error::Lost {
                delivery: Sent::Unknown,
                idempotency: Idempotency::NonIdempotent,
                cause: "the upstream's stream ended before it named the run".to_owned(),
                timed_out: false,
                mendable: false,
                request_id: None,
            }));
        }
        let mut follow = self.follow_run()?;
        // The first state is awaited, so that a run that is not there is an answer and not a
        // stream.
        follow.begin().await?;
        let (_, events) = self.successor.begin(&self.progress, follow)?;
        self.unrecorded = Some(events);
        Ok(())
    }

    async fn go_on_unrecorded(&mut self) -> Result<Next, Arc<Error>> {
        let Some(events) = &mut self.unrecorded else {
            return Ok(Next::End);
        };
        let next = events.next().await;
        self.unrecorded_next(next.map(|next| next.map(StreamedEvent::Message)))
    }

    /// An event that is not in the log, or the end.
    fn unrecorded_next(
        &mut self,
        next: Option<Result<StreamedEvent, Error>>,
    ) -> Result<Next, Arc<Error>> {
        match next {
            Some(Ok(event)) => {
                self.is_over = self.successor.ends_with(&event);
                let wanted = self.is_wanted(&event);
                let event = wanted.then_some(event);
                Ok(Next::Events(event.into_iter().collect()))
            }
            Some(Err(Error::Interrupted { error, .. })) => Err(error),
            Some(Err(error)) => Err(Arc::new(error)),
            None => Ok(Next::End),
        }
    }

    /// The caller is sent elsewhere. What only this replica has, nobody will read.
    fn leave(&mut self) {
        if let Some(recording) = &self.recording
            && !self.log.as_ref().is_some_and(|log| log.is_shared())
        {
            recording.task.abort();
        }
    }

    /// The error that ends this stream: it says how to resume.
    fn interrupted(&self, error: Arc<Error>) -> Error {
        Error::Interrupted {
            error,
            resume: self.progress.resume(),
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if self.options.cancel_on_disconnect
            && self.progress.is_abandoned()
            && let Some(recording) = &self.recording
        {
            // Its reader is dropped with it, and cancels the run.
            recording.task.abort();
        }
    }
}

/// Something was missed, and nobody knows what it was.
fn unknown_gap() -> StreamedEvent {
    gap_event(Gap::default()).into()
}

/// A delivery's events, one by one.
struct OneByOne<S> {
    batches: Pin<Box<S>>,
    ready: vec::IntoIter<StreamedEvent>,
    /// Told of each as it is sent.
    call: SharedResume,
}

impl<S> Stream for OneByOne<S>
where
    S: Stream<Item = Result<Vec<StreamedEvent>, Error>>,
{
    type Item = Result<StreamedEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.ready.next() {
                self.call.sent(&event);
                return Poll::Ready(Some(Ok(event)));
            }
            match ready!(self.batches.as_mut().poll_next(cx)) {
                Some(Ok(events)) => self.ready = events.into_iter(),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}
