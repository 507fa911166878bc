//! Writes of which nobody knows whether they took effect, where the run itself tells: tool outputs
//! and cancellations.
//!
//! Must hold: outputs are sent once more only after the run itself has said that it still waits for
//! them, and once at most. A run that went on is the answer, whoever made it go on. If the run
//! cannot be read, or the second attempt is in doubt too and the run still waits, the caller gets
//! the first error, which says that the outcome is not known.
//!
//! A cancellation is repeated like a read, but its repeat is refused if an earlier attempt took
//! effect. The refusal of a repeat counts only if the run is not being cancelled.
//!
//! A deletion is repeated like a read, too. If the repeat finds nothing, an earlier attempt took
//! effect.
//!
//! Of a create there is nothing to read, unless it is marked (`creates.rs`): a list of runs does not
//! say which of them is the caller's.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::sleep;

use http::HeaderMap;

use super::{
    answer::Answer,
    answerable::Answerable,
    caller::Caller,
    client::Client,
    request::{Request, RestCall},
};
use crate::{
    error::Error,
    v1::{CancelRunRequest, GetRunRequest, Run, RunStatus, SubmitToolOutputsRequest, ToolOutputs},
};

/// A request that deletes something. Generated from the RPC's route.
pub(super) trait Deletion: RestCall {
    /// What the upstream answers with.
    type Answer: Answerable;

    /// The answer to a deletion that was done by an earlier attempt.
    fn deleted(&self) -> Self::Answer;
}

impl Client {
    /// Finds out what became of a submit that failed with `doubt`, and sends it `again` if nothing
    /// did.
    pub(super) async fn reconcile_submit(
        &self,
        caller: &Caller,
        request: &SubmitToolOutputsRequest,
        again: Request,
        doubt: Error,
    ) -> Result<Answer<Run>, Error> {
        match self.look_later(caller, request, &doubt).await {
            Some(answer) if !waits_for(&answer.message, request) => return Ok(answer),
            Some(_) if self.allows_submit(caller, &doubt) => {}
            _ => return Err(doubt),
        }
        tracing::debug!(error = %doubt.log(), "tool outputs did not arrive; sending them once more");
        match self.send(caller, again).await {
            Ok(answer) => Ok(answer),
            // A conflict means that the first attempt did arrive, only late.
            Err(error) if error.outcome_unknown() || error.is_state_conflict() => {
                let seen = self.look_later(caller, request, &error).await;
                seen.filter(|answer| !waits_for(&answer.message, request))
                    .ok_or(doubt)
            }
            Err(_) => Err(doubt),
        }
    }

    /// The run after a while: what was lost on the way back may still be under way inside the
    /// upstream.
    async fn look_later(
        &self,
        caller: &Caller,
        request: &SubmitToolOutputsRequest,
        doubt: &Error,
    ) -> Option<Answer<Run>> {
        if !self.pause_in_doubt(caller, doubt).await {
            return None;
        }
        self.look(caller, &request.thread_id, &request.run_id).await
    }

    /// Waits as long as is due before a run is looked at whose outputs were not taken, or not known
    /// to be. False, at once, if that would take too long, or if one request is all there may be.
    pub(crate) async fn pause_in_doubt(&self, caller: &Caller, doubt: &Error) -> bool {
        let Some(pause) = self.retry.pause_in_doubt(caller, doubt) else {
            return false;
        };
        sleep(pause).await;
        true
    }

    /// Whether outputs that were not taken may be sent once more.
    pub(crate) fn allows_submit(&self, caller: &Caller, doubt: &Error) -> bool {
        self.retry.allows_submit(caller, doubt)
    }

    /// Sends a cancellation. If a repeat of it is refused, finds out whether that is because an
    /// earlier attempt took effect.
    pub(super) async fn send_cancel(
        &self,
        caller: &Caller,
        request: &CancelRunRequest,
        cancellation: Request,
    ) -> Result<Answer<Run>, Error> {
        let cancellation = self.allow(caller, cancellation).await?;
        let repeated = AtomicBool::new(caller.retries);
        let attempt = |number| {
            repeated.fetch_or(number > 0, Ordering::Relaxed);
            self.send_once(caller, &cancellation, number)
        };
        match self.retry.run(caller, attempt).await {
            Err(refused) if refused.is_state_conflict() && repeated.into_inner() => {
                let seen = self.look(caller, &request.thread_id, &request.run_id).await;
                seen.filter(|answer| is_cancelled(&answer.message))
                    .ok_or(refused)
            }
            answered => answered,
        }
    }

    /// Sends a deletion. Only what an attempt of unknown outcome may have deleted counts as deleted:
    /// if the first answer is that there is nothing, there was nothing.
    pub(super) async fn send_deletion<D: Deletion>(
        &self,
        caller: &Caller,
        deletion: &D,
    ) -> Result<Answer<D::Answer>, Error> {
        let request = self.allow(caller, deletion.request()?).await?;
        let (request, doubtful) = (&request, &AtomicBool::new(caller.retries));
        let attempt = |number| async move {
            let answered = self.send_once(caller, request, number).await;
            if let Err(error) = &answered {
                doubtful.fetch_or(error.may_have_taken_effect(), Ordering::Relaxed);
            }
            answered
        };
        match self.retry.run(caller, attempt).await {
            Err(error) if error.is_not_found() && doubtful.load(Ordering::Relaxed) => Ok(Answer {
                message: Box::new(deletion.deleted()),
                headers: HeaderMap::new(),
            }),
            answered => answered,
        }
    }

    async fn look(&self, caller: &Caller, thread_id: &str, run_id: &str) -> Option<Answer<Run>> {
        let request = GetRunRequest {
            thread_id: thread_id.to_owned(),
            run_id: run_id.to_owned(),
        };
        let seen = self.get_run(caller, &request).await;
        seen.inspect_err(|error| tracing::debug!(error = %error.log(), "a run whose state is in doubt cannot be read")).ok()
    }
}

fn is_cancelled(run: &Run) -> bool {
    matches!(run.status(), RunStatus::Cancelling | RunStatus::Cancelled)
}

/// Whether a run still waits for outputs that the request has.
fn waits_for(run: &Run, request: &SubmitToolOutputsRequest) -> bool {
    let wanted = run.wanted();
    let given = request.tool_outputs.as_ref().map(ToolOutputs::given);
    let given = given.unwrap_or_default();
    // Without ids to go by it is not known that it went on.
    run.status() == RunStatus::RequiresAction
        && (given.is_empty() || wanted.is_empty() || wanted.iter().any(|it| given.contains(it)))
}
