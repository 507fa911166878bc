//! `ConverseRun`: a run, its events of all rounds, and the outputs of its tool calls, on one stream.
//!
//! Must hold: whatever can be known to be wrong before the stream begins is an answer and not a
//! stream.
//!
//! Why a task of its own ([`Conversation`]): the caller is heard while it does not read. It holds one
//! event at most that the caller did not take, and those that the run's state came with.

use async_stream::stream;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_stream::Stream;

use super::{
    Events, Options, Started, Streams,
    conversation::{Conversation, State},
    delivery::Delivery,
    follow::Follow,
    heartbeat::with_heartbeat,
    inbox::ToolOutputInbox,
    live::Recorded,
    progress::{Progress, SharedResume},
    reader::Reader,
    streamed,
};
use crate::{
    error::Error,
    upstream::{Caller, IDEMPOTENCY_KEY},
    v1::{ConverseAttach, ConverseRunRequest, RunEvent, converse_run_request::Message},
};

/// What a conversation's caller sends.
pub type Inbound = std::pin::Pin<Box<dyn Stream<Item = Result<ConverseRunRequest, Error>> + Send>>;

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
        let (events, sent) = mpsc::channel(1);
        let state = match first {
            // A caller that leaves ends its create, unless the run is to be cancelled: without the
            // answer nobody would know which one.
            Message::Start(start) => {
                State::starting(start, &reader, &events, options.cancel_on_disconnect)
                    .map_err(|error| error.within("start"))
            }
            Message::Attach(_) => State::following(&reader),
            Message::ToolOutputs(_) | Message::Cancel(_) => Err(Error::invalid(
                "message",
                "the first message must be `start` or `attach`",
            )),
        }?;
        let (begun, beginning) = oneshot::channel();
        let conversation = Conversation::new(reader, inbox, Some(begun));
        let conversation = self.detached.spawn(conversation.run(state, events));
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
            let (events, sent) = mpsc::channel(1);
            let conversation = Conversation::new(reader, inbox, None);
            let state = State::Following(Box::new(follow));
            let conversation = streams.detached.spawn(conversation.run(state, events));
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
    conversation: JoinHandle<Option<(Reader, Error)>>,
) -> impl Stream<Item = Result<RunEvent, Error>> + Send {
    stream! {
        while let Some(event) = sent.recv().await {
            yield Ok(event);
        }
        match conversation.await {
            Ok(None) => {}
            // How far it came is said of its end, and not of where the error was.
            Ok(Some((reader, Error::Interrupted { error, .. }))) => {
                yield Err(reader.interrupted(error));
            }
            Ok(Some((reader, error))) => yield Err(reader.interrupted(error)),
            Err(_) => yield Err(aborted()),
        }
    }
}

/// The conversation's task has panicked.
fn aborted() -> Error {
    Error::Unusable {
        what: "the request was aborted".to_owned(),
        request_id: None,
    }
}
