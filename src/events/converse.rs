//! A conversation: a run, its events of all rounds, and the outputs of its tool calls, on one stream.
//!
//! Must hold: a submit is sent once a round. If its outcome is not known, the run is looked at: it is sent once more only if the run still asks
//! for the same calls. The upstream's `done` after `requires_action` ends a round, not the conversation. While outputs are waited for, the
//! shared poller watches the run, so that one that expires, is cancelled, or is answered by somebody else does not leave its caller waiting.
//!
//! Why a task of its own: the caller is heard while it does not read. It holds one event at most that the caller did not take.

use std::sync::Arc;

use async_stream::stream;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_stream::Stream;

use super::{
    Events, Options, Resume, Streams,
    desk::Desk,
    follow::{Follow, Followed},
    heartbeat::with_heartbeat,
    live::{follow, next},
    progress::{Progress, SharedResume, run_event},
    reader::{Farewell, Reader, Source},
};
use crate::{
    error::Error,
    rest::{Caller, Opened},
    v1::{
        ConverseAttach, ConverseRunRequest, ConverseStart, Run, RunEvent, RunEventType, RunStatus, StreamCreateRunRequest,
        StreamCreateThreadAndRunRequest, StreamSubmitToolOutputsRequest, ToolOutput, ToolOutputs, converse_run_request::Message,
        run_event::Payload,
    },
};

/// What a conversation's caller sends.
pub type Inbound = std::pin::Pin<Box<dyn Stream<Item = Result<ConverseRunRequest, Error>> + Send>>;

/// How often the outputs of one round are submitted, at most.
const MAX_SUBMITS: u32 = 2;

impl Streams {
    /// Converses. `resume` says at any time how to resume.
    pub async fn converse(&self, caller: Caller, inbound: Inbound, resume: SharedResume) -> Result<Events, Error> {
        let mut desk = Desk::new(inbound, self.limits.held_output_bytes);
        let first = desk.first().await?;
        let (options, thread_id, run_id) = match &first {
            Message::Start(start) => (start.options.as_ref(), &*start.thread_id, ""),
            Message::Attach(attach) => (attach.options.as_ref(), &*attach.thread_id, &*attach.run_id),
            Message::ToolOutputs(_) | Message::Cancel(_) => (None, "", ""),
        };
        let options = Options::new(options)?;
        let reader = Reader::new(self, &caller, Progress::new(resume, thread_id, run_id), options);
        let (events, mut sent) = mpsc::channel(1);
        let (begun, beginning) = oneshot::channel();
        let conversation = Conversation { farewell: reader.farewell(), reader, desk, events, submits: 0 };
        tokio::spawn(conversation.hold(first, options, begun));
        // The upstream's answer to the first message is awaited, so that an error is an answer and not a stream.
        beginning.await.unwrap_or_else(|_| Err(Error::Unusable { what: "the request was aborted".to_owned() }))?;
        let events = stream! {
            while let Some(event) = sent.recv().await {
                yield event;
            }
        };
        Ok(with_heartbeat(Box::pin(events), options.heartbeat))
    }
}

struct Conversation {
    reader: Reader,
    desk: Desk,
    farewell: Farewell,
    events: mpsc::Sender<Result<RunEvent, Error>>,
    /// How often the outputs of this round were submitted.
    submits: u32,
}

/// Where a conversation is.
enum Phase {
    /// The upstream streams.
    Live,
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
    Failed(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Conversation {
    /// The whole conversation. `begun` is told how the first message fared.
    async fn hold(mut self, first: Message, options: Options, begun: oneshot::Sender<Result<(), Error>>) {
        let left = self.events.clone();
        // In a box: what it needs, a conversation does not need for the rest of its life.
        let beginning = Box::pin(self.begin(first));
        // A caller that leaves now ends its request, unless the run is to be cancelled: without the answer nobody would know which one.
        let beginning = if options.cancel_on_disconnect { Ok(beginning.await) } else { unless_left(&left, beginning).await };
        drop(left);
        let phase = match beginning {
            Ok(Ok(phase)) => phase,
            Ok(Err(error)) => {
                self.reader.settle();
                // A caller that has left does not want to know.
                let _ = begun.send(Err(error));
                return;
            }
            Err(_) => return,
        };
        let _ = begun.send(Ok(()));
        if let Err(Ended::Failed(error)) = self.run(phase).await {
            self.reader.settle();
            let _ = self.events.send(Err(self.reader.interrupted(error))).await;
        }
    }

    /// Does what the first message asks for.
    async fn begin(&mut self, first: Message) -> Result<Phase, Error> {
        match first {
            Message::Start(start) => self.start(start).await,
            Message::Attach(attach) => self.attach(attach).await,
            Message::ToolOutputs(_) | Message::Cancel(_) => {
                Err(Error::invalid("message", "the first message must be `start` or `attach`"))
            }
        }
    }

    async fn start(&mut self, start: ConverseStart) -> Result<Phase, Error> {
        let ConverseStart { thread_id, run, include, thread_and_run, .. } = start;
        let (client, caller) = (self.reader.streams.client.clone(), self.reader.caller.clone());
        let place = self.reader.streams.place()?;
        let opened = if thread_and_run.is_some() {
            if run.is_some() || !thread_id.is_empty() || !include.is_empty() {
                return Err(Error::invalid("start.thread_and_run", "excludes thread_id, run and include"));
            }
            let request = StreamCreateThreadAndRunRequest { thread_and_run, options: None };
            self.desk.attend(&self.farewell, client.stream_create_thread_and_run(&caller, &request)).await?
        } else {
            let request = StreamCreateRunRequest { thread_id, run, include, options: None };
            self.desk.attend(&self.farewell, client.stream_create_run(&caller, &request)).await?
        };
        self.opened(opened.map_err(|error| error.within("start"))?, place);
        Ok(Phase::Live)
    }

    /// The run's first state is awaited, so that a run that is not there is an answer and not a stream.
    async fn attach(&mut self, attach: ConverseAttach) -> Result<Phase, Error> {
        for (field, id) in [("attach.thread_id", &attach.thread_id), ("attach.run_id", &attach.run_id)] {
            if id.is_empty() {
                return Err(Error::invalid(field, "must be set"));
            }
        }
        let mut follow = follow(&mut self.reader)?;
        let first = self.desk.attend(&self.farewell, follow.next(&self.reader.progress)).await?;
        let first = first.map_err(|error| self.reader.interrupted(error))?;
        Ok(Phase::Following(Box::new((follow, Some(first)))))
    }

    fn opened(&mut self, opened: Opened, place: OwnedSemaphorePermit) {
        match opened {
            Opened::Stream(stream) => self.reader.source = Some(Source { stream, _place: place }),
            // What the run alone says is seen by following it.
            Opened::Run(answer) => self.reader.progress.sent(&run_event(answer.message)),
        }
    }

    async fn run(&mut self, mut phase: Phase) -> Result<(), Ended> {
        loop {
            phase = match phase {
                Phase::Live => self.live().await?,
                Phase::Following(following) => self.following(following.0, following.1).await?,
                Phase::Waiting => self.waiting().await?,
            };
            if self.reader.progress.is_terminal() && self.reader.source.is_none() {
                return Ok(());
            }
        }
    }

    /// Passes on what the upstream streams, until it ends.
    async fn live(&mut self) -> Result<Phase, Ended> {
        loop {
            let next = unless_left(&self.events, next(&mut self.reader));
            let Some(event) = self.desk.attend(&self.farewell, next).await??? else { break };
            // The upstream's word for the end of a round is not the end of the conversation.
            if event.r#type() != RunEventType::Done || self.reader.progress.is_terminal() {
                self.send(event).await?;
            }
        }
        self.reader.source = None;
        if self.reader.progress.is_told() {
            return Ok(Phase::Waiting);
        }
        Ok(Phase::Following(Box::new((follow(&mut self.reader)?, None))))
    }

    /// Passes on what polling shows, until the run is settled.
    async fn following(&mut self, mut follow: Follow, mut first: Option<Followed>) -> Result<Phase, Ended> {
        loop {
            let followed = if let Some(first) = first.take() {
                first
            } else {
                let next = unless_left(&self.events, follow.next(&self.reader.progress));
                self.desk.attend(&self.farewell, next).await??.map_err(shared)?
            };
            match followed {
                Followed::On(events) => self.send_all(events).await?,
                Followed::Settled(events, _) => {
                    self.send_all(events).await?;
                    return Ok(Phase::Waiting);
                }
            }
        }
    }

    /// Waits for the outputs of a round, and watches the run meanwhile.
    async fn waiting(&mut self) -> Result<Phase, Ended> {
        let mut follow = follow(&mut self.reader)?;
        loop {
            let outputs = tokio::select! {
                outputs = self.desk.complete(&self.farewell) => Some(outputs?),
                () = self.events.closed() => return Err(Ended::Left),
                followed = follow.next(&self.reader.progress) => match followed.map_err(shared)? {
                    Followed::Settled(events, run) if run.status() == RunStatus::RequiresAction => {
                        if !self.desk.is_same_round(&run) {
                            self.send_all(events).await?;
                        }
                        None
                    }
                    Followed::Settled(events, _) | Followed::On(events) => {
                        self.desk.close_round();
                        self.send_all(events).await?;
                        return Ok(Phase::Following(Box::new((follow, None))));
                    }
                },
            };
            if let Some(outputs) = outputs {
                drop(follow);
                return self.submit(outputs).await;
            }
        }
    }

    /// Submits the outputs of a round.
    async fn submit(&mut self, outputs: Vec<ToolOutput>) -> Result<Phase, Ended> {
        if self.submits == MAX_SUBMITS {
            let what = "the run asks again for outputs that it was given".to_owned();
            return Err(Error::Unusable { what }.into());
        }
        self.submits += 1;
        let resume = self.reader.progress.resume();
        let request = StreamSubmitToolOutputsRequest {
            thread_id: resume.thread_id,
            run_id: resume.run_id,
            tool_outputs: Some(ToolOutputs { tool_outputs: outputs, extra_json: String::new() }),
            options: None,
        };
        let (client, caller) = (self.reader.streams.client.clone(), self.reader.caller.clone());
        let place = self.reader.streams.place()?;
        self.desk.close_round();
        let opened = self.desk.attend(&self.farewell, client.stream_submit_tool_outputs(&caller, &request)).await?;
        self.reader.streams.touched(&request.thread_id, &request.run_id);
        match opened {
            Ok(opened) => {
                self.reader.progress.resumed();
                self.opened(opened, place);
                Ok(Phase::Live)
            }
            // The run itself tells whether it has them.
            Err(error) if error.is_unsettled() && self.submits < MAX_SUBMITS => {
                tracing::info!(error = %error.log(), "submitting failed; looking at the run");
                Ok(Phase::Following(Box::new((follow(&mut self.reader)?, None))))
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
        let place = self.desk.attend(&self.farewell, self.events.reserve()).await?.map_err(|_| Ended::Left)?;
        let round = match &event.payload {
            Some(Payload::Run(run)) if run.status() == RunStatus::RequiresAction => Some(run.clone()),
            _ => None,
        };
        self.reader.progress.sent(&event);
        place.send(Ok(event));
        if let Some(run) = round {
            self.open_round(&run)?;
        }
        Ok(())
    }

    fn open_round(&mut self, run: &Run) -> Result<(), Error> {
        if !self.desk.open_round(run)? {
            self.submits = 0;
        }
        Ok(())
    }
}

/// An error that is every watcher's, as one's own. How to resume is added at the end.
fn shared(error: Arc<Error>) -> Error {
    Error::Interrupted { error, resume: Resume::default() }
}

/// Does `work` unless the caller leaves before it is done.
async fn unless_left<T>(events: &mpsc::Sender<Result<RunEvent, Error>>, work: impl Future<Output = T>) -> Result<T, Ended> {
    tokio::select! {
        done = work => Ok(done),
        () = events.closed() => Err(Ended::Left),
    }
}
