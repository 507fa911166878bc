//! Runs that somebody else started: `WatchRun` and `WaitRun`, on the shared poller.

use std::sync::Arc;

use async_stream::try_stream;
use http::HeaderMap;
use tokio::time::{Instant, timeout_at};

use super::{
    Options, Started, Streams,
    changes::Changes,
    duration,
    fetch::Parts,
    heartbeat::with_heartbeat,
    is_settled,
    polls::Interest,
    progress::{Progress, SharedResume},
    reader::Reader,
    streamed,
};
use crate::{
    error::{Error, Resume},
    upstream::Caller,
    v1::{Run, RunStatus, WaitRunRequest, WatchRunRequest},
};

impl Streams {
    /// The state of a run and each of its changes, until it is terminal. `resume` says at any time
    /// how to resume. When `leave` is ready the stream ends, to be resumed elsewhere.
    pub async fn watch_run(
        &self,
        caller: &Caller,
        request: &WatchRunRequest,
        resume: SharedResume,
        leave: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Started, Error> {
        let options = Options::of_reading(request.options.as_ref())?;
        let progress = Progress::new(resume, &request.thread_id, &request.run_id);
        let include_messages = request.include_messages || options.include_missed_messages;
        let parts = match (include_messages, request.include_steps) {
            (true, _) => Parts::Messages,
            (false, true) => Parts::Steps,
            (false, false) => Parts::Run,
        };
        let mut watch = self.watches.join(
            caller,
            &request.thread_id,
            &request.run_id,
            Interest::Now(parts),
        )?;
        let mut reader = Reader::new(self, caller, progress, options);
        // The first state is awaited, so that a run that is not there is an answer and not a
        // stream.
        let mut snapshot = watch
            .next()
            .await
            .map_err(|error| reader.interrupted(error))?;
        let include_steps = request.include_steps;
        let mut leave = Box::pin(leave);
        let events = try_stream! {
            let mut changes = Changes::default();
            loop {
                // Whoever wants messages, too, has those: they are listed where steps are not.
                if include_steps
                    && !include_messages
                    && let Some(Err(error)) = &snapshot.steps
                {
                    Err(reader.interrupted(Arc::clone(error)))?;
                }
                for event in changes.to(&snapshot, include_steps, include_messages) {
                    reader.progress.sent(&event);
                    yield event;
                }
                if snapshot.run.status().is_terminal() {
                    break;
                }
                let next = tokio::select! {
                    next = watch.next() => next,
                    () = &mut leave => Err(Arc::new(Error::Draining)),
                };
                snapshot = next.map_err(|error| reader.interrupted(error))?;
            }
        };
        Ok(Started {
            headers: HeaderMap::new(),
            events: with_heartbeat(streamed(events), options.heartbeat),
        })
    }

    /// Waits until a run is terminal, or requires action if that is asked for, or the time is over.
    pub async fn wait_run(&self, caller: &Caller, request: &WaitRunRequest) -> Result<Run, Error> {
        let longest = self.limits.wait;
        let wait = duration("timeout", request.timeout.as_ref())?
            .map_or(longest, |wait| wait.min(longest));
        let until = Instant::now() + wait;
        let enough = if request.return_on_requires_action {
            is_settled
        } else {
            RunStatus::is_terminal
        };
        let mut watch = self.watches.join(
            caller,
            &request.thread_id,
            &request.run_id,
            Interest::Now(Parts::Run),
        )?;
        // Errors are every watcher's; here there is nothing to resume.
        let own = |error| Error::Interrupted {
            error,
            resume: Resume::default(),
        };
        // The first state is waited for in any case: there is nothing else to answer.
        let mut snapshot = watch.next().await.map_err(own)?;
        while !enough(snapshot.run.status()) {
            match timeout_at(until, watch.next()).await {
                Ok(next) => snapshot = next.map_err(own)?,
                Err(_) => break,
            }
        }
        Ok((*snapshot.run).clone())
    }
}
