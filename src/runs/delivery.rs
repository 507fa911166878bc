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

use std::{collections::HashSet, sync::Arc, time::Duration};

use async_stream::try_stream;
use prost::Message as _;
use tokio::time::sleep;

use super::{
    Events, Options, Streams,
    fetch::Parts,
    follow::{Follow, Followed},
    log::{Entry, EventLog, Following, Key, LogError, Page, Position},
    progress::{Progress, SharedResume, gap_event},
    record::{Claim, Recording, ends_delivery, ends_log, within},
    watch::Interest,
};
use crate::{
    error::{Delivery as Sent, Error, Idempotency},
    upstream::Caller,
    v1::{Gap, RunEvent, run_event::Payload},
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
    place: Option<(Key, Position)>,
    following: Option<Following>,
    /// What this replica records of the run for this delivery.
    recording: Option<Recording>,
    /// The run by polling: the log is not to be had.
    follow: Option<Follow>,
    /// The messages that the gap named which was just sent.
    missed: HashSet<String>,
    /// What goes on with a log that nobody writes to.
    successor: Successor,
    /// The last event was read.
    is_over: bool,
}

/// What goes on with a log that nobody writes to: given what the log tells, and the run by polling,
/// its further events.
type Continue = Box<dyn FnOnce(Progress, Follow) -> Events + Send>;

/// What goes on with a log, and when.
enum Successor {
    /// Polling, once nobody writes: until the run is over or somebody else has to act.
    Polling,
    /// A conversation, once nobody writes or the run waits for its caller, whose place this is: until
    /// the run is over.
    Conversation {
        /// Taken when it begins.
        begin: Option<Continue>,
        /// What the log tells.
        before: Progress,
        /// The caller has the events up to here.
        known: Position,
    },
}

/// What a delivery gives next.
enum Next {
    Events(Vec<RunEvent>),
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
            place: None,
            following: None,
            recording,
            follow: None,
            missed: HashSet::new(),
            successor: Successor::Polling,
            is_over: false,
        }
    }

    /// The events of a conversation: it goes on after the run came to require action.
    pub(super) fn of_conversation(mut self) -> Self {
        self.successor = Successor::Conversation {
            begin: None,
            before: Progress::default(),
            known: Position::START,
        };
        self
    }

    /// A conversation takes up a run that was recorded: `begin` begins it with its caller's `inbox`
    /// once it is its turn. Gives the inbox back if the run was not recorded.
    pub(super) fn converse<I: Send + 'static>(
        mut self,
        inbox: I,
        begin: impl FnOnce(I, Progress, Follow) -> Events + Send + 'static,
    ) -> Result<Self, I> {
        let Some((_, known)) = self.place.as_mut() else {
            return Err(inbox);
        };
        let resume = self.progress.resume();
        let own = SharedResume::default();
        self.successor = Successor::Conversation {
            begin: Some(Box::new(|before, follow| begin(inbox, before, follow))),
            before: Progress::new(own, &resume.thread_id, &resume.run_id),
            // The whole log is read, since it tells how far the conversation has come.
            known: std::mem::replace(known, Position::START),
        };
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
                delivery.place = Some((key, after));
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
        let last = last.and_then(|entry| RunEvent::decode(entry.payload.clone()).ok());
        !last.is_some_and(|event| ends_log(&event))
    }

    /// Begins without a log.
    async fn begin(&mut self) -> Result<(), Error> {
        let began = self.begin_to_poll().await;
        began.map_err(|error| self.interrupted(error))
    }

    /// All that comes, until the run is over or somebody else has to act. When `leave` is ready the
    /// stream ends, to be resumed elsewhere.
    pub(super) fn events(mut self, leave: impl Future<Output = ()> + Send + 'static) -> Events {
        Box::pin(try_stream! {
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
                    Next::Events(events) => for event in events {
                        self.progress.sent(&event);
                        yield event;
                    },
                    Next::End => break,
                }
            }
        })
    }

    /// What follows. May be dropped while it waits: nothing is lost.
    async fn next(&mut self) -> Result<Next, Arc<Error>> {
        loop {
            if self.is_over {
                return Ok(Next::End);
            }
            if self.follow.is_some() {
                return self.poll().await;
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
            let following = self.following.get_or_insert_with(|| log.follow(&key));
            following.begin_to_read();
            // Looked at before the log is read: what it wrote until now is there then.
            let source = self.recording.as_mut().map(|recording| {
                let is_gone = recording.state.has_changed().is_err();
                (recording.state.borrow_and_update().clone(), is_gone)
            });
            let source =
                source.filter(|(state, is_gone)| !is_gone || state.is_done || state.is_direct);
            // The last entry that is this delivery's: after it nothing is recorded.
            let stored = match &source {
                Some((state, _)) if state.is_direct || state.is_done => Some(state.stored),
                _ => None,
            };
            if stored.is_some_and(|stored| after >= stored) {
                if let Some(next) = self.directly().await? {
                    return Ok(next);
                }
                continue;
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
            let (events, is_empty) = (self.take(&key, &page), page.entries.is_empty());
            if !events.is_empty() {
                return Ok(Next::Events(events));
            }
            if !is_empty {
                continue;
            }
            let last = stored.unwrap_or(page.last);
            if after < last {
                // All that was left was trimmed: nobody knows what it was.
                self.place = Some((key, last));
                return Ok(Next::Events(vec![gap_event(Gap::default())]));
            }
            match source {
                Some(_) => self.wait().await,
                None => {
                    self.recording = None;
                    if page.is_held && !self.is_next() {
                        self.wait().await;
                    } else {
                        self.take_over(&log, &key).await?;
                    }
                }
            }
        }
    }

    /// The log and the place in it, once the source has one; `None` if its events come directly.
    async fn find_log(&mut self) -> Result<Option<(Key, Position)>, Arc<Error>> {
        while self.place.is_none() {
            let Some(recording) = &mut self.recording else {
                return Ok(None);
            };
            let state = recording.state.borrow_and_update().clone();
            if state.is_direct {
                return Ok(None);
            }
            self.place = state.log;
            if self.place.is_none() && recording.state.changed().await.is_err() {
                return Ok(None);
            }
        }
        Ok(self.place.clone())
    }

    async fn read(&mut self, key: &Key, after: Position) -> Result<Option<Page>, LogError> {
        let Some(log) = &self.log else {
            return Ok(None);
        };
        within(self.streams.log_limits().timeout, log.read(key, after)).await
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

    /// Whoever still writes to the log waits for this caller, in vain.
    fn is_next(&self) -> bool {
        match &self.successor {
            Successor::Polling => false,
            Successor::Conversation { begin, before, .. } => {
                begin.is_some() && before.terminal_sent()
            }
        }
    }

    /// After this event there is nothing to deliver.
    fn ends_with(&self, event: &RunEvent) -> bool {
        match self.successor {
            Successor::Polling => ends_delivery(event),
            Successor::Conversation { .. } => ends_log(event),
        }
    }

    /// The events on a page, each with its position.
    fn take(&mut self, key: &Key, page: &Page) -> Vec<RunEvent> {
        let mut events = Vec::new();
        for entry in &page.entries {
            let Some((_, place)) = &mut self.place else {
                break;
            };
            let known = match &self.successor {
                Successor::Conversation { known, .. } => *known,
                Successor::Polling => Position::START,
            };
            if !entry.follows(*place) && entry.position > known.next() {
                // Nobody knows what it was.
                events.push(gap_event(Gap::default()));
            }
            *place = entry.position;
            if let Some(event) = self.event(key, entry) {
                self.is_over = self.ends_with(&event);
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

    fn event(&mut self, key: &Key, entry: &Entry) -> Option<RunEvent> {
        if entry.position.begins_epoch() {
            return None;
        }
        let Ok(mut event) = RunEvent::decode(entry.payload.clone()) else {
            tracing::error!("an entry of the event log is not what was written");
            return Some(gap_event(Gap::default()));
        };
        event.position = entry.position.to_text(key);
        if let Successor::Conversation { before, known, .. } = &mut self.successor {
            before.sent(&event);
            if entry.position <= *known {
                return None;
            }
        }
        self.is_wanted(&event).then_some(event)
    }

    /// Messages that were missed are recorded behind their gap: who did not ask for them goes
    /// without.
    fn is_wanted(&mut self, event: &RunEvent) -> bool {
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
            Some(Ok(event)) => {
                self.is_over = self.ends_with(&event);
                let wanted = self.is_wanted(&event);
                Ok(Some(Next::Events(
                    wanted.then_some(event).into_iter().collect(),
                )))
            }
            Some(Err(Error::Interrupted { error, .. })) => Err(error),
            Some(Err(error)) => Err(Arc::new(error)),
            None if recording.state.borrow().is_done => Ok(Some(Next::End)),
            None => {
                let is_direct = recording.state.borrow().is_direct;
                self.recording = None;
                if is_direct || self.place.is_none() {
                    self.begin_to_poll().await?;
                }
                Ok(None)
            }
        }
    }

    /// Goes on with a log that nobody writes to.
    async fn take_over(&mut self, log: &Arc<dyn EventLog>, key: &Key) -> Result<(), Arc<Error>> {
        let place = self.place.as_ref().map_or(Position::START, |(_, it)| *it);
        let before = match &mut self.successor {
            Successor::Conversation { before, .. } => Ok(Some((std::mem::take(before), place))),
            Successor::Polling => self.read_all(key).await,
        };
        let (before, last) = match before {
            Ok(Some(before)) => before,
            Ok(None) => return self.begin_to_poll().await,
            Err(error) => {
                self.streams.log_failed(&error);
                return self.begin_to_poll().await;
            }
        };
        if self.place.as_ref().is_some_and(|(_, place)| *place < last) {
            // Somebody else was first: that is read before anything else.
            return Ok(());
        }
        if before.is_terminal() {
            self.is_over = true;
            return Ok(());
        }
        let after = matches!(self.successor, Successor::Polling).then_some(last);
        match self.streams.claim(log, key.clone(), after).await {
            Ok(claim) => self.go_on(log, before, claim),
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
                if let Ok(event) = RunEvent::decode(entry.payload.clone())
                    && !entry.position.begins_epoch()
                {
                    progress.sent(&event);
                }
            }
            if page.entries.is_empty() {
                return Ok(Some((progress, page.last)));
            }
        }
    }

    /// Records what polling shows, for all who read this log.
    fn go_on(
        &mut self,
        log: &Arc<dyn EventLog>,
        before: Progress,
        claim: Claim,
    ) -> Result<(), Arc<Error>> {
        let follow = self.follow_run()?;
        let resume = before.shared();
        let events = match &mut self.successor {
            Successor::Polling => polled(follow, before),
            Successor::Conversation { begin, .. } => match begin.take() {
                Some(begin) => begin(before, follow),
                // It was there, and is gone.
                None => return Err(Arc::new(Error::Draining)),
            },
        };
        let metrics = &self.streams.client.telemetry().metrics().event_log;
        metrics.takeovers.inc();
        self.recording =
            Some(
                self.streams
                    .record_from(log, &self.caller, resume, events, Some(claim)),
            );
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

    /// From here on the run is polled for this caller alone, and the first event is a gap.
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
        self.follow = Some(follow);
        Ok(())
    }

    async fn poll(&mut self) -> Result<Next, Arc<Error>> {
        let Some(follow) = &mut self.follow else {
            return Ok(Next::End);
        };
        let mut events = match follow.next(&self.progress).await? {
            Followed::On(events) => events,
            Followed::Settled(events, _) => {
                self.is_over = true;
                events
            }
        };
        events.retain(|event| self.is_wanted(event));
        Ok(Next::Events(events))
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

/// What polling shows of a run, until it is settled.
fn polled(mut follow: Follow, mut progress: Progress) -> Events {
    Box::pin(try_stream! {
        loop {
            let followed = follow.next(&progress).await;
            let (events, settled) = match followed.map_err(|error| Error::Interrupted { error, resume: progress.resume() })? {
                Followed::On(events) => (events, false),
                Followed::Settled(events, _) => (events, true),
            };
            for event in events {
                progress.sent(&event);
                yield event;
            }
            if settled {
                break;
            }
        }
    })
}
