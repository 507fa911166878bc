//! The calls that are written by hand because another request may follow the first. All others are
//! generated (`calls.rs`).

use super::{answer::Answer, caller::Caller, client::Client, request::RestCall};
use crate::{
    error::Error,
    v1::{CancelRunRequest, Run, SubmitToolOutputsRequest},
};

impl Client {
    /// `POST /threads/{thread_id}/runs/{run_id}/submit_tool_outputs`
    pub async fn submit_tool_outputs(
        &self,
        caller: &Caller,
        request: &SubmitToolOutputsRequest,
    ) -> Result<Answer<Run>, Error> {
        match self.send(caller, request.request()?).await {
            Err(error) if error.outcome_unknown() => {
                self.reconcile_submit(caller, request, request.request()?, error)
                    .await
            }
            settled => settled,
        }
    }

    /// `POST /threads/{thread_id}/runs/{run_id}/cancel`
    pub async fn cancel_run(
        &self,
        caller: &Caller,
        request: &CancelRunRequest,
    ) -> Result<Answer<Run>, Error> {
        self.send_cancel(caller, request, request.request()?).await
    }
}
