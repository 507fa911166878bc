//! Tool outputs of which nobody knows whether they arrived.
//!
//! Must hold: outputs are sent once more only after the run itself has said that it still waits for them, and once at most. A run that went on is
//! the answer, whoever made it go on. If the run cannot be read, or the second attempt is in doubt too and the run still waits, the caller gets the
//! first error, which says that the outcome is not known.
//!
//! Of a create there is nothing to read: a list of runs does not say which of them is the caller's.

use tokio::time::sleep;

use super::{Answer, Caller, Client, Request};
use crate::{
    error::Error,
    v1::{GetRunRequest, Run, RunStatus, SubmitToolOutputsRequest},
};

impl Client {
    /// Finds out what became of a submit that failed with `doubt`, and sends it `again` if nothing did.
    pub(super) async fn settle_submit(
        &self,
        caller: &Caller,
        request: &SubmitToolOutputsRequest,
        again: Request,
        doubt: Error,
    ) -> Result<Answer<Run>, Error> {
        match self.look(caller, request, &doubt).await {
            Some(answer) if !waits_for(&answer.message, request) => return Ok(answer),
            Some(_) if self.retry.allows_submit(caller, &doubt) => {}
            _ => return Err(doubt),
        }
        tracing::debug!(error = %doubt.log(), "tool outputs did not arrive; sending them once more");
        match self.send(caller, again).await {
            Ok(answer) => Ok(answer),
            // A conflict means that the first attempt did arrive, only late.
            Err(error) if error.is_in_doubt() || error.is_state_conflict() => {
                let seen = self.look(caller, request, &error).await;
                seen.filter(|answer| !waits_for(&answer.message, request)).ok_or(doubt)
            }
            Err(_) => Err(doubt),
        }
    }

    /// The run after a while: what was lost on the way back may still be under way inside the upstream.
    async fn look(&self, caller: &Caller, request: &SubmitToolOutputsRequest, doubt: &Error) -> Option<Answer<Run>> {
        sleep(self.retry.pause_in_doubt(caller, doubt)?).await;
        let request = GetRunRequest { thread_id: request.thread_id.clone(), run_id: request.run_id.clone() };
        let seen = self.get_run(caller, &request).await;
        seen.inspect_err(|error| tracing::debug!(error = %error.log(), "a run whose outputs are in doubt cannot be read")).ok()
    }
}

/// Whether a run still waits for outputs that the request has.
fn waits_for(run: &Run, request: &SubmitToolOutputsRequest) -> bool {
    let required = run.required_action.as_ref().and_then(|action| action.submit_tool_outputs.as_ref());
    let calls = required.map(|required| &*required.tool_calls).unwrap_or_default();
    let outputs = request.tool_outputs.as_ref().map(|outputs| &*outputs.tool_outputs).unwrap_or_default();
    let is_given = |id: &str| outputs.iter().any(|output| output.tool_call_id == id);
    // Without ids to go by it is not known that it went on.
    run.status() == RunStatus::RequiresAction
        && (outputs.is_empty() || calls.is_empty() || calls.iter().any(|call| is_given(&call.id)))
}
