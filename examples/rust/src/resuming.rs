//! A stream of a run that goes on where it broke, on whichever replica answers; to copy from.
//! `runs_gateway::resuming` in the gateway's library is the same, with more choice.

use std::{
    error::Error as _,
    time::{Duration, Instant},
};

use tonic::{Code, Response, Status, Streaming, transport::Channel};
use tonic_types::StatusExt as _;

use crate::{ResumeRunRequest, RunEvent, run_event::Payload, run_service_client::RunServiceClient};

/// How often in a row a stream is resumed. An event that has a position begins a new row.
const MAX_RESUMES: u32 = 8;

/// For how long.
const MAX_OUTAGE: Duration = Duration::from_secs(60);

/// Each event once of a stream that was asked for with `resumable`.
pub struct Resuming {
    runs: RunServiceClient<Channel>,
    opened: Result<Streaming<RunEvent>, Status>,
    place: ResumeRunRequest,
    resumes: u32,
    until: Instant,
}

impl Resuming {
    /// Goes on with what a call gave.
    pub fn new(
        runs: RunServiceClient<Channel>,
        opened: Result<Response<Streaming<RunEvent>>, Status>,
    ) -> Self {
        Self {
            runs,
            opened: opened.map(Response::into_inner),
            place: ResumeRunRequest::default(),
            resumes: 0,
            until: Instant::now(),
        }
    }

    /// The next event; `None` at the end. Fails if the stream broke and cannot be resumed.
    pub async fn message(&mut self) -> Result<Option<RunEvent>, Status> {
        loop {
            let next = match &mut self.opened {
                Ok(events) => events.message().await,
                Err(status) => Err(status.clone()),
            };
            let status = match next {
                Ok(Some(event)) => {
                    if let Some(Payload::Run(run)) = &event.payload {
                        self.place.thread_id.clone_from(&run.thread_id);
                        self.place.run_id.clone_from(&run.id);
                    }
                    if !event.position.is_empty() {
                        self.place.after_position.clone_from(&event.position);
                        self.resumes = 0;
                    }
                    return Ok(Some(event));
                }
                Ok(None) => return Ok(None),
                Err(status) => status,
            };
            self.learn(&status);
            if self.resumes == 0 {
                self.until = Instant::now() + MAX_OUTAGE;
            }
            if !is_broken(&status)
                || self.place.run_id.is_empty()
                || self.resumes == MAX_RESUMES
                || Instant::now() > self.until
            {
                return Err(status);
            }
            let pause = Duration::from_millis(100) * 2_u32.pow(self.resumes);
            tokio::time::sleep(pause.min(Duration::from_secs(5))).await;
            self.resumes += 1;
            let opened = self.runs.resume_run(self.place.clone()).await;
            self.opened = opened.map(Response::into_inner);
        }
    }

    /// An error may name the run before any event has. What nobody names cannot be resumed.
    fn learn(&mut self, status: &Status) {
        if let Some(info) = status.get_details_error_info()
            && let Some(run_id) = info.metadata.get("run_id")
            && let Some(thread_id) = info.metadata.get("thread_id")
        {
            self.place.thread_id.clone_from(thread_id);
            self.place.run_id.clone_from(run_id);
        }
    }
}

fn is_broken(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::Unknown | Code::Internal | Code::Aborted => true,
        // tonic's own: the connection closed under the call.
        Code::Cancelled => status.source().is_some(),
        _ => false,
    }
}
