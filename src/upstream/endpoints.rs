//! How an RPC's request becomes a REST request, and the calls that are written by hand because
//! another request may follow the first. All others are generated (`calls.rs`).

use super::{Answer, Caller, Client, Request, marks};
use crate::{
    error::Error,
    json,
    v1::{CancelRunRequest, Run, SubmitToolOutputsRequest},
};

/// Members of request bodies that the gateway sets itself.
const OWNED: &[&str] = &["stream"];

/// An RPC's request that is one REST request. Generated from the RPC's route.
pub(super) trait RestCall {
    /// The REST request, or what is wrong with this one. Nothing is sent.
    fn request(&self) -> Result<Request, Error>;
}

/// Encodes the body that a request holds in `field`. It names no mark.
pub(super) fn body<M: json::Document>(field: &str, body: Option<&M>) -> Result<Vec<u8>, Error> {
    let body = body.ok_or_else(|| Error::invalid(field, "must be set"))?;
    let body = json::encode_request(body, OWNED).map_err(|violation| violation.within(field))?;
    marks::refuse(field, &body)?;
    Ok(body)
}

/// The same, where a request without a body asks for nothing in particular.
pub(super) fn body_or_empty<M: json::Document>(
    field: &str,
    message: Option<&M>,
) -> Result<Vec<u8>, Error> {
    match message {
        None => Ok(b"{}".to_vec()),
        message => body(field, message),
    }
}

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
