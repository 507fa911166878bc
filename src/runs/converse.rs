//! A conversation: a run, its events of all rounds, and the outputs of its tool calls, on one
//! stream.
//!
//! Must hold: a submit is sent once a round. If its outcome is not known, the run is looked at: it
//! is sent once more only if the run still asks for the same calls, by the rules of a unary submit
//! (`rest/reconcile.rs`). The upstream's `done` after `requires_action` ends a round, not the
//! conversation. While outputs are waited for, the shared poller watches the run, so that one that
//! expires, is cancelled, or is answered by somebody else does not leave its caller waiting.
//!
//! Why a task of its own: the caller is heard while it does not read. It holds one event at most
//! that the caller did not take.

use std::sync::Arc;

use async_stream::stream;
use http::HeaderMap;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_stream::Stream;

use super::{
    Events, Options, Started, Streams,
    creates::{Begun, Left},
    delivery::Delivery,
    follow::{Follow, Followed},
    heartbeat::with_heartbeat,
    inbox::ToolOutputInbox,
    live::{Recorded, cut, follow, next, watch},
    polls::Interest,
    progress::{Progress, SharedResume},
    reader::{CancelOnDisconnect, Reader},
    streamed,
};
use crate::{
    error::Error,
    shares::Permit,
    upstream::{Caller, IDEMPOTENCY_KEY, UpstreamReply},
    v1::{
        ConverseAttach, ConverseRunRequest, ConverseStart, RunEvent, RunEventType, RunStatus,
        StreamCreateRunRequest, StreamCreateThreadAndRunRequest, StreamSubmitToolOutputsRequest,
        converse_run_request::Message, run_event::Payload,
    },
};

/// What a conversation's caller sends.
pub type Inbound = std::pin::Pin<Box<dyn Stream<Item = Result<ConverseRunRequest, Error>> + Send>>;

/// How often the outputs of one round are submitted, at most.
const MAX_SUBMITS: u32 = 2;

impl Streams {
    /// Converses. `resume` says at any time how to resume.
    pub async fn converse(
        &self,
        caller: Caller,
        inbound: Inbound,
        resume: SharedResume,
        leave: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Started, Error> {
        let (limit, part) = (self.limits.held_output_bytes, caller.held.part());
        let mut inbox = ToolOutputInbox::new(inbound, limit, part);
        let first = inbox.first().await?;
        let (name, options, thread_id, run_id) = match &first {
            Message::Start(start) => ("start", start.options.as_ref(), &*start.thread_id, ""),
            Message::Attach(attach) => (
                "attach",
                attach.options.as_ref(),
                &*attach.thread_id,
                &*attach.run_id,
            ),
            Message::ToolOutputs(_) | Message::Cancel(_) => ("", None, "", ""),
        };
        let options = Options::new(options).map_err(|error| error.within(name))?;
        let record = self.recorded(&caller, options, &resume);
        let record = record.map_err(|error| error.within(name))?;
        let mut after = None;
        if let Message::Attach(attach) = &first {
            attach.check()?;
            resume.begins_with_a_read();
            after = (options.resumable || !attach.after_position.is_empty())
                .then(|| attach.after_position.clone());
        }
        if let Some(after) = after {
            let position = ("attach.after_position", &*after);
            let progress = Progress::new(resume.clone(), thread_id, run_id);
            let delivery = Delivery::after(self, caller.clone(), progress, options, position);
            let begin = self.continues(&caller, options, &resume);
            match delivery.await?.converse(inbox, begin) {
                Ok(delivery) => {
                    let events = with_heartbeat(delivery.events(leave), options.heartbeat);
                    return Ok(events.into());
                }
                Err(back) => inbox = back,
            }
        }
        let reader = Reader::new(
            self,
            &caller,
            record.progress(&resume, thread_id, run_id),
            options,
        );
        let resume = reader.progress.shared();
        let (begun, beginning) = oneshot::channel();
        let (conversation, sent) = Conversation::new(reader, inbox);
        let conversation = self
            .detached
            .spawn(conversation.hold(first, options, begun));
        // The upstream's answer to the first message is awaited, so that an error is an answer and
        // not a stream.
        let headers = beginning.await.unwrap_or_else(|_| Err(aborted()))?;
        let events = said(sent, conversation);
        let events = match record.0 {
            None => streamed(events),
            Some(recorded) => {
                let Recorded { log, caller, call } = *recorded;
                let recording = self.record(&log, &caller, resume, Box::pin(events));
                let delivery = Delivery::of(self, &log, caller, call, options, recording);
                delivery.of_conversation().events(leave)
            }
        };
        let events = with_heartbeat(events, options.heartbeat);
        Ok(Started { headers, events })
    }

    /// How a conversation goes on with a run that was recorded.
    fn continues(
        &self,
        caller: &Caller,
        options: Options,
        resume: &SharedResume,
    ) -> impl FnOnce(ToolOutputInbox, Progress, Follow) -> Events + Send + 'static {
        let (streams, mut caller) = (self.clone(), caller.clone());
        let call = resume.clone();
        caller.headers.remove(IDEMPOTENCY_KEY);
        move |inbox, before, follow| {
            let progress = before.of_call(&call);
            let reader = Reader::new(&streams, &caller, progress, options);
            let (mut conversation, sent) = Conversation::new(reader, inbox);
            let conversation = streams.detached.spawn(async move {
                let phase = Phase::Following(Box::new((follow, None)));
                match conversation.run(phase).await {
                    Err(Ended::Failed(error)) => Some((conversation.reader, error)),
                    Ok(()) | Err(Ended::Left) => None,
                }
            });
            Box::pin(said(sent, conversation))
        }
    }
}

impl ConverseAttach {
    /// The run has to be named.
    fn check(&self) -> Result<(), Error> {
        for (field, id) in [
            ("attach.thread_id", &self.thread_id),
            ("attach.run_id", &self.run_id),
        ] {
            if id.is_empty() {
                return Err(Error::invalid(field, "must be set"));
            }
        }
        Ok(())
    }
}

/// What a conversation says, and how it ended.
fn said(
    mut sent: mpsc::Receiver<RunEvent>,
    conversation: JoinHandle<Option<(Reader, Arc<Error>)>>,
) -> impl Stream<Item = Result<RunEvent, Error>> + Send {
    stream! {
        while let Some(event) = sent.recv().await {
            yield Ok(event);
        }
        match conversation.await {
            Ok(None) => {}
            Ok(Some((reader, error))) => yield Err(reader.interrupted(error)),
            Err(_) => yield Err(aborted()),
        }
    }
}

struct Conversation {
    reader: Reader,
    inbox: ToolOutputInbox,
    canceller: CancelOnDisconnect,
    events: mpsc::Sender<RunEvent>,
    /// What the upstream said of the first request, until the caller is told.
    headers: HeaderMap,
    /// How often the outputs of this round were submitted.
    submits: u32,
    /// Why the last submit of this round may not have been taken.
    doubt: Option<Error>,
}

/// Where a conversation is.
enum Phase {
    /// The upstream streams, after these events. If it does not, they are all that it said.
    Live(Vec<RunEvent>),
    /// The run is followed by polling, and this came first.
    Following(Box<(Follow, Option<Followed>)>),
    /// The run waits for outputs.
    Waiting,
}

/// Why a conversation is over.
enum Ended {
    /// The caller left.
    Left,
    /// It failed.
    Failed(Arc<Error>),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        match error {
            // How to resume is added at the end.
            Error::Interrupted { error, .. } => Self::Failed(error),
            error => Self::Failed(Arc::new(error)),
        }
    }
}

impl From<Arc<Error>> for Ended {
    fn from(error: Arc<Error>) -> Self {
        Self::Failed(error)
    }
}

impl Conversation {
    fn new(reader: Reader, inbox: ToolOutputInbox) -> (Self, mpsc::Receiver<RunEvent>) {
        let (events, sent) = mpsc::channel(1);
        let conversation = Self {
            canceller: reader.canceller(),
            reader,
            inbox,
            events,
            headers: HeaderMap::new(),
            submits: 0,
            doubt: None,
        };
        (conversation, sent)
    }

    /// The whole conversation. `begun` is told how the first message fared. If it fails later: the
    /// error, for whoever is still there, and the reader, which is dropped with it if nobody is.
    async fn hold(
        mut self,
        first: Message,
        options: Options,
        begun: oneshot::Sender<Result<HeaderMap, Error>>,
    ) -> Option<(Reader, Arc<Error>)> {
        let left = self.events.clone();
        // In a box: what it needs, a conversation does not need for the rest of its life.
        let beginning = Box::pin(self.begin(first));
        // A caller that leaves now ends its request, unless the run is to be cancelled: without the
        // answer nobody would know which one.
        let beginning = if options.cancel_on_disconnect {
            Ok(beginning.await)
        } else {
            unless_disconnected(&left, beginning).await
        };
        drop(left);
        // The caller's key is that of the create: outputs under the same one might get its answer.
        self.reader.caller.headers.remove(IDEMPOTENCY_KEY);
        let phase = match beginning {
            Ok(Ok(phase)) => phase,
            Ok(Err(error)) => {
                let _ = begun.send(Err(error));
                return None;
            }
            Err(_) => return None,
        };
        let _ = begun.send(Ok(std::mem::take(&mut self.headers)));
        match self.run(phase).await {
            Err(Ended::Failed(error)) => {
                if self.canceller.knows_run() {
                    self.reader.source = None;
                }
                Some((self.reader, error))
            }
            Ok(()) | Err(Ended::Left) => None,
        }
    }

    /// Does what the first message asks for.
    async fn begin(&mut self, first: Message) -> Result<Phase, Error> {
        match first {
            Message::Start(start) => self
                .start(start)
                .await
                .map_err(|error| error.within("start")),
            Message::Attach(attach) => self.attach(attach).await,
            Message::ToolOutputs(_) | Message::Cancel(_) => Err(Error::invalid(
                "message",
                "the first message must be `start` or `attach`",
            )),
        }
    }

    async fn start(&mut self, start: ConverseStart) -> Result<Phase, Error> {
        let ConverseStart {
            thread_id,
            run,
            include,
            thread_and_run,
            request_id,
            on_active_run,
            ..
        } = start;
        let (streams, caller) = (&self.reader.streams, &self.reader.caller);
        let permit = streams.live_permit(caller)?;
        let rpc = "ConverseRun";
        let begun = if thread_and_run.is_some() {
            let is_on_thread = run.is_some() || !thread_id.is_empty() || !include.is_empty();
            if is_on_thread || on_active_run != 0 {
                return Err(Error::invalid(
                    "thread_and_run",
                    "excludes thread_id, run, include and on_active_run",
                ));
            }
            let request = StreamCreateThreadAndRunRequest {
                thread_and_run,
                request_id,
                options: None,
            };
            streams.create(rpc, caller, &request).await?
        } else {
            let request = StreamCreateRunRequest {
                thread_id,
                run,
                include,
                request_id,
                on_active_run,
                options: None,
            };
            let left = Left::Events(&self.events);
            streams.create_unless(rpc, caller, &request, left).await?
        };
        let (reply, events) = match begun {
            Begun::Made { reply, events, .. } => (reply, events),
            Begun::Repeat(ids) => {
                let answer = streams.run(caller, ids).await?;
                (UpstreamReply::Run(Box::new(answer)), Vec::new())
            }
        };
        Ok(self.opened(reply, events, permit))
    }

    /// The run's first state is awaited, so that a run that is not there is an answer and not a
    /// stream.
    async fn attach(&mut self, attach: ConverseAttach) -> Result<Phase, Error> {
        attach.check()?;
        let mut follow = follow(&self.reader)?;
        let first = self
            .inbox
            .attend(&self.canceller, follow.next(&self.reader.progress))
            .await?;
        let first = first.map_err(|error| self.reader.interrupted(error))?;
        Ok(Phase::Following(Box::new((follow, Some(first)))))
    }

    fn opened(&mut self, reply: UpstreamReply, events: Vec<RunEvent>, permit: Permit) -> Phase {
        let (headers, events) = self.reader.opened(reply, events, permit);
        self.headers = headers;
        Phase::Live(events)
    }

    async fn run(&mut self, mut phase: Phase) -> Result<(), Ended> {
        loop {
            phase = match phase {
                Phase::Live(first) => self.live(first).await?,
                Phase::Following(following) => self.following(following.0, following.1).await?,
                Phase::Waiting => self.waiting().await?,
            };
            if self.reader.progress.is_terminal() {
                return Ok(());
            }
        }
    }

    /// Passes on what the upstream streams, until it ends.
    async fn live(&mut self, first: Vec<RunEvent>) -> Result<Phase, Ended> {
        let streams = self.reader.source.is_some();
        for event in first {
            self.send(event).await?;
        }
        loop {
            let next = unless_disconnected(&self.events, next(&mut self.reader));
            let Some(event) = self.inbox.attend(&self.canceller, next).await??? else {
                break;
            };
            // The upstream's word for the end of a round is not the end of the conversation.
            if event.r#type() != RunEventType::Done || self.reader.progress.is_terminal() {
                self.send(event).await?;
            }
        }
        self.reader.source = None;
        if self.reader.progress.terminal_sent() {
            return Ok(Phase::Waiting);
        }
        if streams {
            cut(&self.reader);
        }
        Ok(Phase::Following(Box::new((follow(&self.reader)?, None))))
    }

    /// Passes on what polling shows, until the run is settled.
    async fn following(
        &mut self,
        mut follow: Follow,
        mut first: Option<Followed>,
    ) -> Result<Phase, Ended> {
        loop {
            let followed = if let Some(first) = first.take() {
                first
            } else {
                let next = unless_disconnected(&self.events, follow.next(&self.reader.progress));
                self.inbox.attend(&self.canceller, next).await???
            };
            match followed {
                Followed::On(events) => self.send_all(events).await?,
                Followed::Settled(mut events, run) => {
                    let calls = run.wanted();
                    // Told again, it would look like another round, and tools would be run twice:
                    // its outputs are here, to be submitted again.
                    let again = run.status() == RunStatus::RequiresAction
                        && !calls.is_empty()
                        && self.inbox.is_round(&calls);
                    if again {
                        events.pop();
                    }
                    // What the log has told, it does not tell again either.
                    let known = again || events.is_empty();
                    self.send_all(events).await?;
                    if known {
                        self.inbox.open_round(calls)?;
                    }
                    return Ok(Phase::Waiting);
                }
            }
        }
    }

    /// Waits for the outputs of a round, and submits them.
    async fn waiting(&mut self) -> Result<Phase, Ended> {
        // A round whose outputs came early needs no poll.
        if !self.inbox.is_complete()
            && let Some(phase) = self.watching().await?
        {
            return Ok(phase);
        }
        self.submit().await
    }

    /// Follows the run until the outputs of its round are there, or it goes on without them.
    async fn watching(&mut self) -> Result<Option<Phase>, Ended> {
        let mut watch = watch(&self.reader, Interest::Seldom)?;
        while !self.inbox.is_complete() {
            tokio::select! {
                heard = self.inbox.hear(&self.canceller) => heard?,
                () = self.events.closed() => return Err(Ended::Left),
                snapshot = watch.next() => {
                    // What came instead is told by a look at its steps, too.
                    let run = &snapshot?.run;
                    if run.status() != RunStatus::RequiresAction
                        || !self.inbox.is_round(&run.wanted())
                    {
                        let follow = follow(&self.reader)?;
                        return Ok(Some(Phase::Following(Box::new((follow, None)))));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Submits the outputs of a round.
    async fn submit(&mut self) -> Result<Phase, Ended> {
        let (client, caller) = (&self.reader.streams.client, &self.reader.caller);
        let doubt = self.doubt.take();
        let allowed = doubt
            .as_ref()
            .is_none_or(|doubt| client.allows_submit(caller, doubt));
        if self.submits == MAX_SUBMITS || !allowed {
            let what = "the run asks again for outputs that it was given".to_owned();
            return Err(doubt
                .unwrap_or(Error::Unusable {
                    what,
                    request_id: None,
                })
                .into());
        }
        self.submits += 1;
        let permit = self.reader.streams.live_permit(&self.reader.caller)?;
        let resume = self.reader.progress.resume();
        let request = StreamSubmitToolOutputsRequest {
            thread_id: resume.thread_id,
            run_id: resume.run_id,
            tool_outputs: Some(self.inbox.submit()),
            options: None,
        };
        let opened = self
            .inbox
            .attend(
                &self.canceller,
                client.stream_submit_tool_outputs(caller, &request),
            )
            .await?;
        self.reader
            .streams
            .touched(&request.thread_id, &request.run_id);
        match opened {
            Ok(opened) => {
                self.reader.progress.resumed();
                Ok(self.opened(opened, Vec::new(), permit))
            }
            // The run itself tells whether it has them.
            Err(error) if error.is_unsettled() => {
                let pause = async {
                    error.is_state_conflict() || client.pause_in_doubt(caller, &error).await
                };
                if !self
                    .inbox
                    .attend(&self.canceller, unless_disconnected(&self.events, pause))
                    .await??
                {
                    return Err(error.into());
                }
                tracing::info!(error = %error.log(), "submitting failed; looking at the run");
                self.doubt = Some(error);
                Ok(Phase::Following(Box::new((follow(&self.reader)?, None))))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn send_all(&mut self, events: Vec<RunEvent>) -> Result<(), Ended> {
        for event in events {
            self.send(event).await?;
        }
        Ok(())
    }

    async fn send(&mut self, event: RunEvent) -> Result<(), Ended> {
        let Ok(place) = self
            .inbox
            .attend(&self.canceller, self.events.reserve())
            .await?
        else {
            // The run's name may be in it, and is needed to cancel the run.
            self.reader.progress.sent(&event);
            return Err(Ended::Left);
        };
        self.reader.progress.sent(&event);
        let asked = match &event.payload {
            Some(Payload::Run(run)) if run.status() == RunStatus::RequiresAction => {
                Some(run.wanted())
            }
            Some(Payload::Run(_)) if self.reader.progress.is_terminal() => {
                self.inbox.close();
                None
            }
            Some(Payload::Run(_)) => {
                self.inbox.end_round();
                None
            }
            _ => None,
        };
        place.send(event);
        if let Some(calls) = asked
            && self.inbox.open_round(calls)?
        {
            self.submits = 0;
            self.doubt = None;
        }
        Ok(())
    }
}

/// The conversation's task has panicked.
fn aborted() -> Error {
    Error::Unusable {
        what: "the request was aborted".to_owned(),
        request_id: None,
    }
}

/// Does `work` unless the caller leaves before it is done.
async fn unless_disconnected<T>(
    events: &mpsc::Sender<RunEvent>,
    work: impl Future<Output = T>,
) -> Result<T, Ended> {
    tokio::select! {
        done = work => Ok(done),
        () = events.closed() => Err(Ended::Left),
    }
}
