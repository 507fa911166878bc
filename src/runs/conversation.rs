//! A conversation as an actor: one loop waits for whatever happens next (the caller says something,
//! takes an event or leaves; the upstream answers, streams or is seen to have changed), and plain
//! states say what that means.
//!
//! Must hold: a submit is sent once a round. If its outcome is not known, the run is looked at: it
//! is sent once more only if the run still asks for the same calls, by the rules of a unary submit
//! (`upstream/reconcile.rs`). The upstream's `done` after `requires_action` ends a round, not the
//! conversation. While outputs are missing, the shared poller watches the run, so that one that
//! expires, is cancelled, or is answered by somebody else does not leave its caller waiting.
//!
//! Nothing is read for a caller that has not taken what was read before. What the loop waits for is
//! dropped when something else happens first, and asked for anew: it may be dropped while it waits,
//! and what must not be stays in its [`State`].

use std::{collections::VecDeque, future::pending, pin::Pin, sync::Arc};

use http::HeaderMap;
use tokio::sync::{mpsc, oneshot};

use super::{
    creates::{Begun, Disconnect},
    fetch::Snapshot,
    follow::{Follow, Followed},
    inbox::ToolOutputInbox,
    live::{cut, follow, next, watch},
    polls::Interest,
    reader::{CancelOnDisconnect, Reader},
    watch::Subscription,
};
use crate::{
    error::Error,
    shares::Permit,
    upstream::{IDEMPOTENCY_KEY, UpstreamReply, Wanted},
    v1::{
        ConverseStart, Run, RunEvent, RunEventType, RunStatus, StreamCreateRunRequest,
        StreamCreateThreadAndRunRequest, StreamSubmitToolOutputsRequest, run_event::Payload,
    },
};

/// How often the outputs of one round are submitted, at most.
const MAX_SUBMITS: u32 = 2;

/// A conversation with one caller.
pub(super) struct Conversation {
    reader: Reader,
    inbox: ToolOutputInbox,
    canceller: CancelOnDisconnect,
    /// Who waits for the answer to the first message, until there is one: the headers that the
    /// caller may see, or an error in place of a stream.
    begun: Option<oneshot::Sender<Result<HeaderMap, Error>>>,
    /// Events that the caller has not taken yet.
    untaken: VecDeque<RunEvent>,
    /// How often the outputs of this round were submitted.
    submits: u32,
    /// Why the last submit of this round may not have been taken.
    doubt: Option<Error>,
}

/// Where a conversation is.
pub(super) enum State {
    /// Something is under way that must not be begun again.
    Asking {
        answer: Pin<Box<dyn Future<Output = Answer> + Send>>,
        /// It goes on when the caller leaves.
        outlives_caller: bool,
    },
    /// The upstream streams, unless it answered with the run alone.
    Live { streams: bool },
    /// The run is followed by polling.
    Following(Box<Follow>),
    /// The run is over, or waits for outputs: of these calls, if the caller was told before.
    Settled(Option<Vec<Wanted>>),
    /// Outputs of a round are missing, and the run is watched.
    Waiting(Subscription),
}

/// What comes of what was [asked for](State::Asking).
pub(super) enum Answer {
    /// The run that the first message asks for, and events of it that were read already.
    Started(Result<(UpstreamReply, Vec<RunEvent>), Error>, Permit),
    /// The outputs of a round were submitted.
    Submitted(Result<UpstreamReply, Error>, Permit),
    /// A submit failed with this error, and the pause after it is over: whether the run may be
    /// looked at, to submit again.
    Paused(bool, Error),
}

/// What the upstream's side has for a conversation.
enum Happened {
    Answer(Answer),
    /// An event of the upstream's stream; `None` at its end.
    Event(Option<RunEvent>),
    Followed(Followed),
    Snapshot(Arc<Snapshot>),
}

/// Why a conversation is over before its run.
enum Ended {
    CallerLeft,
    Failed(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl State {
    /// A run is asked for, for a caller that takes `events`.
    pub(super) fn starting(
        start: ConverseStart,
        reader: &Reader,
        events: &mpsc::Sender<RunEvent>,
        outlives_caller: bool,
    ) -> Result<Self, Error> {
        let ConverseStart {
            thread_id,
            run,
            include,
            thread_and_run,
            request_id,
            on_active_run,
            ..
        } = start;
        let is_on_thread = run.is_some() || !thread_id.is_empty() || !include.is_empty();
        if thread_and_run.is_some() && (is_on_thread || on_active_run != 0) {
            return Err(Error::invalid(
                "thread_and_run",
                "excludes thread_id, run, include and on_active_run",
            ));
        }
        let permit = reader.streams.live_permit(&reader.caller)?;
        let (streams, caller) = (reader.streams.clone(), reader.caller.clone());
        let events = events.clone();
        let started = async move {
            let rpc = "ConverseRun";
            let begun = if thread_and_run.is_some() {
                let request = StreamCreateThreadAndRunRequest {
                    thread_and_run,
                    request_id,
                    options: None,
                };
                streams.create(rpc, &caller, &request).await?
            } else {
                let request = StreamCreateRunRequest {
                    thread_id,
                    run,
                    include,
                    request_id,
                    on_active_run,
                    options: None,
                };
                let disconnect = Disconnect::Events(&events);
                streams
                    .create_unless(rpc, &caller, &request, disconnect)
                    .await?
            };
            Ok(match begun {
                Begun::Made { reply, events, .. } => (reply, events),
                Begun::Repeat(ids) => {
                    let answer = streams.run(&caller, ids).await?;
                    (UpstreamReply::Run(Box::new(answer)), Vec::new())
                }
            })
        };
        let answer = Box::pin(async move {
            let started = started.await;
            Answer::Started(
                started.map_err(|error: Error| error.within("start")),
                permit,
            )
        });
        Ok(Self::Asking {
            answer,
            outlives_caller,
        })
    }

    /// The run is followed from its present state.
    pub(super) fn following(reader: &Reader) -> Result<Self, Error> {
        Ok(Self::Following(Box::new(follow(reader)?)))
    }

    /// Waits for what the upstream's side has next. May be dropped while it waits: nothing is lost.
    async fn next(&mut self, reader: &mut Reader) -> Result<Happened, Error> {
        Ok(match self {
            Self::Asking { answer, .. } => Happened::Answer(answer.await),
            Self::Live { .. } => Happened::Event(next(reader).await?),
            Self::Following(follow) => {
                let followed = follow.next(&reader.progress).await;
                Happened::Followed(followed.map_err(|error| reader.interrupted(error))?)
            }
            Self::Waiting(watch) => {
                let snapshot = watch.next().await;
                Happened::Snapshot(snapshot.map_err(|error| reader.interrupted(error))?)
            }
            Self::Settled(_) => pending().await,
        })
    }
}

impl Conversation {
    /// A conversation; `begun` is told how its first message fared.
    pub(super) fn new(
        mut reader: Reader,
        inbox: ToolOutputInbox,
        begun: Option<oneshot::Sender<Result<HeaderMap, Error>>>,
    ) -> Self {
        // The caller's key is that of the create: outputs under the same one might get its answer.
        reader.caller.headers.remove(IDEMPOTENCY_KEY);
        Self {
            canceller: reader.canceller(),
            reader,
            inbox,
            begun,
            untaken: VecDeque::new(),
            submits: 0,
            doubt: None,
        }
    }

    /// The whole conversation. If it fails once it has begun: the error, for whoever is still there,
    /// and the reader, which is dropped with it if nobody is.
    pub(super) async fn run(
        mut self,
        state: State,
        events: mpsc::Sender<RunEvent>,
    ) -> Option<(Reader, Error)> {
        let error = match self.converse(state, &events).await {
            Err(Ended::Failed(error)) => error,
            Ok(()) | Err(Ended::CallerLeft) => return None,
        };
        if let Some(begun) = self.begun.take() {
            let _ = begun.send(Err(error));
            return None;
        }
        if self.canceller.knows_run() {
            self.reader.source = None;
        }
        Some((self.reader, error))
    }

    async fn converse(
        &mut self,
        mut state: State,
        events: &mpsc::Sender<RunEvent>,
    ) -> Result<(), Ended> {
        loop {
            let all_taken = self.untaken.is_empty();
            if all_taken {
                state = match self.advance(state)? {
                    Some(state) => state,
                    None => return Ok(()),
                };
            }
            let outlives_caller = matches!(
                state,
                State::Asking {
                    outlives_caller: true,
                    ..
                }
            );
            let happened = tokio::select! {
                said = self.inbox.recv(&self.canceller) => {
                    said?;
                    continue;
                }
                permit = events.reserve(), if !all_taken => {
                    self.send(permit.ok())?;
                    continue;
                }
                () = events.closed(), if all_taken && !outlives_caller => {
                    return Err(Ended::CallerLeft);
                }
                happened = state.next(&mut self.reader), if all_taken => happened?,
            };
            state = match happened {
                Happened::Answer(answer) => self.answered(answer)?,
                Happened::Event(Some(event)) => {
                    // The upstream's word for the end of a round is not the end of the conversation.
                    if event.r#type() != RunEventType::Done || self.reader.progress.is_terminal() {
                        self.untaken.push_back(event);
                    }
                    state
                }
                Happened::Event(None) => self.ended(&state)?,
                Happened::Followed(followed) => self.followed(followed, state),
                Happened::Snapshot(snapshot) => self.seen(&snapshot.run, state)?,
            };
        }
    }

    /// What a state comes to once the caller has taken all events; `None` if the run is over.
    fn advance(&mut self, state: State) -> Result<Option<State>, Error> {
        Ok(Some(match state {
            State::Settled(_) if self.reader.progress.is_terminal() => return Ok(None),
            State::Settled(again) => {
                if let Some(calls) = again {
                    self.inbox.open_round(calls)?;
                }
                // A round whose outputs came early needs no poll.
                if self.inbox.is_complete() {
                    self.submit()?
                } else {
                    State::Waiting(watch(&self.reader, Interest::Seldom)?)
                }
            }
            State::Waiting(_) if self.inbox.is_complete() => self.submit()?,
            state => state,
        }))
    }

    /// Sends the first event that the caller has not taken. Without a permit the caller has left.
    fn send(&mut self, permit: Option<mpsc::Permit<'_, RunEvent>>) -> Result<(), Ended> {
        let Some(permit) = permit else {
            // The run's name may be in them, and is needed to cancel the run.
            for event in &self.untaken {
                self.reader.progress.sent(event);
            }
            return Err(Ended::CallerLeft);
        };
        let Some(event) = self.untaken.pop_front() else {
            return Ok(());
        };
        self.reader.progress.sent(&event);
        let mut wanted = None;
        if let Some(Payload::Run(run)) = &event.payload {
            if run.status() == RunStatus::RequiresAction {
                wanted = Some(run.wanted());
            } else if self.reader.progress.is_terminal() {
                self.inbox.close();
            } else {
                self.inbox.end_round();
            }
        }
        permit.send(event);
        if let Some(calls) = wanted
            && self.inbox.open_round(calls)?
        {
            self.submits = 0;
            self.doubt = None;
        }
        Ok(())
    }

    fn answered(&mut self, answer: Answer) -> Result<State, Error> {
        match answer {
            Answer::Started(started, permit) => {
                let (reply, events) = started?;
                Ok(self.opened(reply, events, permit))
            }
            Answer::Submitted(Ok(reply), permit) => {
                self.reader.progress.resumed();
                Ok(self.opened(reply, Vec::new(), permit))
            }
            // The run itself tells whether it has them.
            Answer::Submitted(Err(error), _) if error.is_unsettled() => Ok(self.pause(error)),
            Answer::Submitted(Err(error), _) | Answer::Paused(false, error) => Err(error),
            Answer::Paused(true, error) => {
                tracing::info!(error = %error.log(), "submitting failed; looking at the run");
                self.doubt = Some(error);
                State::following(&self.reader)
            }
        }
    }

    fn opened(&mut self, reply: UpstreamReply, events: Vec<RunEvent>, permit: Permit) -> State {
        let (headers, events) = self.reader.opened(reply, events, permit);
        self.begin(headers);
        self.untaken.extend(events);
        State::Live {
            streams: self.reader.source.is_some(),
        }
    }

    /// Tells who waits for it that the first message fared well.
    fn begin(&mut self, headers: HeaderMap) {
        if let Some(begun) = self.begun.take() {
            let _ = begun.send(Ok(headers));
        }
    }

    /// The upstream's stream is over.
    fn ended(&mut self, state: &State) -> Result<State, Error> {
        self.reader.source = None;
        if self.reader.progress.terminal_sent() {
            return Ok(State::Settled(None));
        }
        if matches!(state, State::Live { streams: true }) {
            cut(&self.reader);
        }
        State::following(&self.reader)
    }

    fn followed(&mut self, followed: Followed, state: State) -> State {
        // The first state of a run that a caller attaches to is awaited, so that a run that is not
        // there is an answer and not a stream.
        self.begin(HeaderMap::new());
        let (mut events, run) = match followed {
            Followed::On(events) => {
                self.untaken.extend(events);
                return state;
            }
            Followed::Settled(events, run) => (events, run),
        };
        let calls = run.wanted();
        // Told again, it would look like another round, and tools would be run twice: its outputs
        // are here, to be submitted again.
        let again = run.status() == RunStatus::RequiresAction
            && !calls.is_empty()
            && self.inbox.is_round(&calls);
        if again {
            events.pop();
        }
        // What the log has told, it does not tell again either.
        let known = again || events.is_empty();
        self.untaken.extend(events);
        State::Settled(known.then_some(calls))
    }

    /// The run as it is while outputs are missing.
    fn seen(&mut self, run: &Run, state: State) -> Result<State, Error> {
        if run.status() == RunStatus::RequiresAction && self.inbox.is_round(&run.wanted()) {
            return Ok(state);
        }
        // What came instead is told by a look at its steps, too.
        State::following(&self.reader)
    }

    /// Submits the outputs of a round.
    fn submit(&mut self) -> Result<State, Error> {
        let (streams, caller) = (&self.reader.streams, &self.reader.caller);
        let doubt = self.doubt.take();
        let allowed = doubt
            .as_ref()
            .is_none_or(|doubt| streams.client.allows_submit(caller, doubt));
        if self.submits == MAX_SUBMITS || !allowed {
            return Err(doubt.unwrap_or_else(|| Error::Unusable {
                what: "the run asks again for outputs that it was given".to_owned(),
                request_id: None,
            }));
        }
        self.submits += 1;
        let permit = streams.live_permit(caller)?;
        let resume = self.reader.progress.resume();
        let request = StreamSubmitToolOutputsRequest {
            thread_id: resume.thread_id,
            run_id: resume.run_id,
            tool_outputs: Some(self.inbox.submit()),
            options: None,
        };
        let (streams, caller) = (streams.clone(), caller.clone());
        let answer = Box::pin(async move {
            let client = &streams.client;
            let submitted = client.stream_submit_tool_outputs(&caller, &request).await;
            streams.touched(&request.thread_id, &request.run_id);
            Answer::Submitted(submitted, permit)
        });
        Ok(State::Asking {
            answer,
            outlives_caller: true,
        })
    }

    /// A pause after a submit whose outcome is not known.
    fn pause(&self, doubt: Error) -> State {
        let (streams, caller) = (self.reader.streams.clone(), self.reader.caller.clone());
        let answer = Box::pin(async move {
            let may_look =
                doubt.is_state_conflict() || streams.client.pause_in_doubt(&caller, &doubt).await;
            Answer::Paused(may_look, doubt)
        });
        State::Asking {
            answer,
            outlives_caller: false,
        }
    }
}
