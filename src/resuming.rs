//! The caller's side of a stream that resumes by itself, for services in Rust.
//!
//! ```no_run
//! use runs_gateway::{
//!     resuming::ResumingStream,
//!     v1::{StreamCreateRunRequest, StreamOptions, run_service_client::RunServiceClient},
//! };
//!
//! # async fn example(request: StreamCreateRunRequest) -> Result<(), Box<dyn std::error::Error>> {
//! let mut client = RunServiceClient::connect("http://127.0.0.1:50051").await?;
//! let options = StreamOptions { resumable: true, ..StreamOptions::default() };
//! let request = StreamCreateRunRequest { options: Some(options), ..request };
//! let opened = client.stream_create_run(request).await;
//! let mut events = ResumingStream::new(client, opened);
//! while let Some(event) = events.message().await? {
//!     println!("{:?}", event.r#type());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Must hold:
//!
//! - No event comes twice. Each resume begins after the last position that came; what came without
//!   a position and was recorded nevertheless is left out when it comes again.
//! - No run is created and no output is submitted here: what is called is `ResumeRun` alone.
//! - A stream that breaks before the run is known cannot be resumed: its error is told.

use std::{collections::VecDeque, error::Error as _, fmt, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};
use tonic::{
    Code, Request, Response, Status, Streaming, metadata::MetadataMap, transport::Channel,
};
use tonic_types::StatusExt as _;

use crate::v1::{
    ResumeRunRequest, RunEvent, RunEventType, run_event::Payload,
    run_service_client::RunServiceClient,
};

/// The pause before the first resume; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause, unless the gateway asks for a longer one.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// The most events of one append to the event log: if its answer comes too late, these come without
/// a position, and are recorded nevertheless.
const UNPLACED: usize = 256;

/// A stream of a run's events that goes on where it broke, on whichever replica answers.
pub struct ResumingStream {
    client: RunServiceClient<Channel>,
    state: State,
    resume_request: ResumeRunRequest,
    /// The first events that came without a position after the last one that had one, up to
    /// [`UNPLACED`].
    unplaced: VecDeque<RunEvent>,
    /// They may come again, in this order.
    may_repeat: bool,
    /// Resumes since the last event that had a position, and when the first of them began.
    outage: (u32, Option<Instant>),
    /// Metadata of each `ResumeRun`: credentials, as for the call that began the stream.
    pub metadata: MetadataMap,
    /// How often in a row it resumes, at most; at first 8. An event that has a position begins a
    /// new row.
    pub max_resumes: u32,
    /// How long a row of resumes may take; at first one minute. A stream that was resumed may be
    /// silent for longer than that.
    pub max_outage: Duration,
}

enum State {
    Live(Box<Streaming<RunEvent>>),
    /// To be resumed; with the error that ended the stream, if there was one before.
    Broken(Option<Box<Status>>),
    Ended,
}

impl ResumingStream {
    /// Goes on with a stream that a call through `client` opened, or failed to open: a stream of
    /// `StreamCreateRun`, `StreamCreateThreadAndRun` or `StreamSubmitToolOutputs`, asked for with
    /// `resumable`. For the last one, say by [`after`](Self::after) what came before.
    pub fn new(
        client: RunServiceClient<Channel>,
        opened: Result<Response<Streaming<RunEvent>>, Status>,
    ) -> Self {
        let state = match opened {
            Ok(events) => State::Live(Box::new(events.into_inner())),
            Err(status) => State::Broken(Some(Box::new(status))),
        };
        Self::with(client, state)
    }

    /// The events of a run after a [place](Self::resume_request) that was kept, such as by a process that
    /// has ended since. `options` of the place count for every resume.
    pub fn resume(client: RunServiceClient<Channel>, resume_request: ResumeRunRequest) -> Self {
        Self::with(client, State::Broken(None)).after(resume_request)
    }

    fn with(client: RunServiceClient<Channel>, state: State) -> Self {
        Self {
            client,
            state,
            resume_request: ResumeRunRequest::default(),
            unplaced: VecDeque::new(),
            may_repeat: false,
            outage: (0, None),
            metadata: MetadataMap::new(),
            max_resumes: 8,
            max_outage: Duration::from_secs(60),
        }
    }

    /// The events follow this place: a stream that breaks before its first event resumes there.
    #[must_use]
    pub fn after(mut self, resume_request: ResumeRunRequest) -> Self {
        self.resume_request = resume_request;
        self
    }

    /// What asks for the events that did not come yet. Its ids are empty until the run is known.
    pub fn resume_request(&self) -> &ResumeRunRequest {
        &self.resume_request
    }

    /// The next event; `None` at the end, which is after the run's last state or the one in which
    /// it requires action. May be dropped while it waits: nothing is lost.
    ///
    /// # Errors
    ///
    /// The error that the stream ended with, if it cannot be resumed: the run is not known, the
    /// error is of another kind, or the budget is used up. There are no events after it.
    pub async fn message(&mut self) -> Result<Option<RunEvent>, Status> {
        loop {
            match &mut self.state {
                State::Live(events) => match events.message().await {
                    Ok(Some(event)) => {
                        if let Some(event) = self.take(event) {
                            return Ok(Some(event));
                        }
                    }
                    Ok(None) => self.state = State::Ended,
                    Err(status) => self.state = State::Broken(Some(Box::new(status))),
                },
                State::Broken(_) => self.reopen().await?,
                State::Ended => return Ok(None),
            }
        }
    }

    /// What the event tells of the place; nothing, if it came before.
    fn take(&mut self, event: RunEvent) -> Option<RunEvent> {
        if event.r#type() == RunEventType::Heartbeat {
            return Some(event);
        }
        if let Some(Payload::Run(run)) = &event.payload {
            self.resume_request.thread_id.clone_from(&run.thread_id);
            self.resume_request.run_id.clone_from(&run.id);
        }
        if event.position.is_empty() {
            if self.unplaced.len() < UNPLACED {
                self.unplaced.push_back(event.clone());
            }
            return Some(event);
        }
        self.resume_request
            .after_position
            .clone_from(&event.position);
        self.outage = (0, None);
        let is_repeated = self.may_repeat
            && self.unplaced.pop_front().is_some_and(|before| {
                let position = event.position.clone();
                RunEvent { position, ..before } == event
            });
        if is_repeated {
            return None;
        }
        self.unplaced.clear();
        Some(event)
    }

    /// Resumes once. Fails if that is not to be done.
    async fn reopen(&mut self) -> Result<(), Status> {
        let State::Broken(broken) = &self.state else {
            return Ok(());
        };
        let broken = broken.clone();
        if let Some(status) = &broken {
            self.learn_run(status);
        }
        let (resumes, began) = self.outage;
        let now = Instant::now();
        let over = began.unwrap_or(now) + self.max_outage;
        let wait = broken.as_ref().map(|status| pause(status, resumes));
        let wait = wait.unwrap_or_default();
        let may_resume = broken.as_deref().is_none_or(is_interruption)
            && !self.resume_request.run_id.is_empty()
            && resumes < self.max_resumes
            && now + wait <= over;
        if !may_resume {
            self.state = State::Ended;
            return Err(broken.map_or_else(|| Status::invalid_argument("no run"), |it| *it));
        }
        self.outage = (resumes, Some(began.unwrap_or(now)));
        sleep(wait).await;
        self.outage.0 += 1;
        let mut request = Request::new(self.resume_request.clone());
        request.metadata_mut().clone_from(&self.metadata);
        let opened = timeout_at(over, self.client.resume_run(request)).await;
        self.state = match opened {
            Ok(Ok(events)) => {
                self.may_repeat = !self.unplaced.is_empty();
                State::Live(Box::new(events.into_inner()))
            }
            Ok(Err(status)) => State::Broken(Some(Box::new(status))),
            Err(_) => {
                self.state = State::Ended;
                let late = || Status::unavailable("the gateway does not answer");
                return Err(broken.map_or_else(late, |status| *status));
            }
        };
        Ok(())
    }

    /// An error may name the run before any event has.
    fn learn_run(&mut self, status: &Status) {
        if let Some((thread_id, run_id)) = run_of(status) {
            (self.resume_request.thread_id, self.resume_request.run_id) = (thread_id, run_id);
        }
    }
}

impl fmt::Debug for ResumingStream {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ResumingStream")
            .field("resume_request", &self.resume_request)
            .finish_non_exhaustive()
    }
}

/// Whether the run may well go on.
pub(crate) fn is_interruption(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::Unknown | Code::Internal | Code::Aborted => true,
        // tonic's own: the connection closed under the call.
        Code::Cancelled => status.source().is_some(),
        _ => status.get_details_retry_info().is_some(),
    }
}

/// How long to wait after this error, having tried so often.
pub(crate) fn pause(status: &Status, tries: u32) -> Duration {
    let retry_after = status
        .get_details_retry_info()
        .and_then(|info| info.retry_delay);
    retry_after.unwrap_or((FIRST_PAUSE * 2_u32.saturating_pow(tries)).min(MAX_PAUSE))
}

/// The thread and the run that an error names.
pub(crate) fn run_of(status: &Status) -> Option<(String, String)> {
    let metadata = status.get_details_error_info()?.metadata;
    let id = |name| metadata.get(name).filter(|id| !id.is_empty()).cloned();
    Some((id("thread_id")?, id("run_id")?))
}

#[cfg(test)]
mod tests {
    use tonic::transport::Endpoint;

    use super::*;

    fn event(kind: RunEventType, position: &str) -> RunEvent {
        RunEvent {
            r#type: kind.into(),
            position: position.to_owned(),
            synthesized: kind == RunEventType::Gap,
            ..RunEvent::default()
        }
    }

    /// What came without a position because the store was slow, and was stored, is left out when it
    /// comes again; nothing else is.
    #[tokio::test]
    async fn what_came_without_a_position_does_not_come_again() {
        use RunEventType::{
            Gap, ThreadMessageCompleted as Message, ThreadMessageDelta as Delta,
            ThreadRunCompleted as Run, ThreadRunStepCompleted as Step,
        };
        let before = [Delta, Message, Step];
        for (what, again, heard) in [
            ("nothing was stored", &[Gap, Run][..], &[Gap, Run][..]),
            ("some was stored", &[Delta, Gap, Run], &[Gap, Run]),
            ("all was stored", &[Delta, Message, Step, Run], &[Run]),
            (
                "another round",
                &[Run, Delta, Message],
                &[Run, Delta, Message],
            ),
        ] {
            let channel = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
            let client = RunServiceClient::new(channel);
            let mut events = ResumingStream::resume(client, ResumeRunRequest::default());
            assert!(events.take(event(Message, "1-1")).is_some(), "{what}");
            for kind in before {
                assert!(events.take(event(kind, "")).is_some(), "{what}");
            }
            assert_eq!(events.resume_request().after_position, "1-1", "{what}");
            events.may_repeat = true;
            let again = again.iter().enumerate();
            let again = again.map(|(number, kind)| event(*kind, &format!("1-{}", number + 2)));
            let taken: Vec<_> = again.filter_map(|event| events.take(event)).collect();
            let taken: Vec<_> = taken.iter().map(RunEvent::r#type).collect();
            assert_eq!(taken, heard, "{what}");
        }
    }
}
