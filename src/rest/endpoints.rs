//! One method per REST endpoint. Each takes the RPC's request and checks it before anything is
//! sent.
//!
//! Must hold: the routes here are those in the comments of the contract's RPCs (a test compares
//! what arrives upstream).

use super::{
    Answer, Caller, Client, Request, UpstreamReply,
    target::{Query, target},
};
use crate::{
    error::{Error, Idempotency},
    json,
    v1::{
        CancelRunRequest, CreateRunRequest, CreateThreadAndRunRequest, GetRunRequest,
        GetRunStepRequest, ListRunStepsRequest, ListRunStepsResponse, ListRunsRequest,
        ListRunsResponse, ModifyRunRequest, Run, RunSpec, RunStep, StreamCreateRunRequest,
        StreamCreateThreadAndRunRequest, StreamSubmitToolOutputsRequest, SubmitToolOutputsRequest,
        ThreadAndRunSpec, ToolOutputs,
    },
};

/// Members of request bodies that the gateway sets itself.
const OWNED: &[&str] = &["stream"];

type Answered<M> = Result<Answer<M>, Error>;

/// Encodes the body that a request holds in `field`.
fn body<M: json::Document>(field: &str, body: Option<&M>) -> Result<Vec<u8>, Error> {
    let body = body.ok_or_else(|| Error::invalid(field, "must be set"))?;
    Ok(json::encode_request(body, OWNED).map_err(|violation| violation.within(field))?)
}

fn create_run(
    thread_id: &str,
    run: Option<&RunSpec>,
    include: &[String],
) -> Result<Request, Error> {
    let target = target("/threads/{thread_id}/runs", &[thread_id])?;
    Ok(Request::create(target)
        .query(Query::default().include(include)?)
        .body(body("run", run)?))
}

fn create_thread_and_run(spec: Option<&ThreadAndRunSpec>) -> Result<Request, Error> {
    Ok(Request::create(target("/threads/runs", &[])?).body(body("thread_and_run", spec)?))
}

pub(super) fn submit_tool_outputs(
    thread_id: &str,
    run_id: &str,
    outputs: Option<&ToolOutputs>,
) -> Result<Request, Error> {
    let target = target(
        "/threads/{thread_id}/runs/{run_id}/submit_tool_outputs",
        &[thread_id, run_id],
    )?;
    Ok(Request::post(target, Idempotency::NonIdempotent).body(body("tool_outputs", outputs)?))
}

impl Client {
    /// `POST /threads/{thread_id}/runs`
    pub async fn create_run(&self, caller: &Caller, request: &CreateRunRequest) -> Answered<Run> {
        self.send(
            caller,
            create_run(&request.thread_id, request.run.as_ref(), &request.include)?,
        )
        .await
    }

    /// `POST /threads/{thread_id}/runs` with `stream`
    pub async fn stream_create_run(
        &self,
        caller: &Caller,
        request: &StreamCreateRunRequest,
    ) -> Result<UpstreamReply, Error> {
        self.open(
            caller,
            create_run(&request.thread_id, request.run.as_ref(), &request.include)?.streamed(),
        )
        .await
    }

    /// `POST /threads/runs`
    pub async fn create_thread_and_run(
        &self,
        caller: &Caller,
        request: &CreateThreadAndRunRequest,
    ) -> Answered<Run> {
        self.send(
            caller,
            create_thread_and_run(request.thread_and_run.as_ref())?,
        )
        .await
    }

    /// `POST /threads/runs` with `stream`
    pub async fn stream_create_thread_and_run(
        &self,
        caller: &Caller,
        request: &StreamCreateThreadAndRunRequest,
    ) -> Result<UpstreamReply, Error> {
        self.open(
            caller,
            create_thread_and_run(request.thread_and_run.as_ref())?.streamed(),
        )
        .await
    }

    /// `GET /threads/{thread_id}/runs`
    pub async fn list_runs(
        &self,
        caller: &Caller,
        request: &ListRunsRequest,
    ) -> Answered<ListRunsResponse> {
        let target = target("/threads/{thread_id}/runs", &[&request.thread_id])?;
        let query = Query::default().page(
            request.limit,
            request.order,
            &request.after,
            &request.before,
        )?;
        self.send(caller, Request::get(target).query(query)).await
    }

    /// `GET /threads/{thread_id}/runs/{run_id}`
    pub async fn get_run(&self, caller: &Caller, request: &GetRunRequest) -> Answered<Run> {
        let target = target(
            "/threads/{thread_id}/runs/{run_id}",
            &[&request.thread_id, &request.run_id],
        )?;
        self.send(caller, Request::get(target)).await
    }

    /// `POST /threads/{thread_id}/runs/{run_id}`
    pub async fn modify_run(&self, caller: &Caller, request: &ModifyRunRequest) -> Answered<Run> {
        let target = target(
            "/threads/{thread_id}/runs/{run_id}",
            &[&request.thread_id, &request.run_id],
        )?;
        let body = body("run", request.run.as_ref())?;
        self.send(
            caller,
            Request::post(target, Idempotency::Idempotent).body(body),
        )
        .await
    }

    /// `POST /threads/{thread_id}/runs/{run_id}/submit_tool_outputs`
    pub async fn submit_tool_outputs(
        &self,
        caller: &Caller,
        request: &SubmitToolOutputsRequest,
    ) -> Answered<Run> {
        let SubmitToolOutputsRequest {
            thread_id,
            run_id,
            tool_outputs,
        } = request;
        let submit = || submit_tool_outputs(thread_id, run_id, tool_outputs.as_ref());
        let submitted = self.send(caller, submit()?).await;
        match submitted {
            Err(error) if error.outcome_unknown() => {
                self.reconcile_submit(caller, request, submit()?, error)
                    .await
            }
            settled => settled,
        }
    }

    /// `POST /threads/{thread_id}/runs/{run_id}/submit_tool_outputs` with `stream`
    pub async fn stream_submit_tool_outputs(
        &self,
        caller: &Caller,
        request: &StreamSubmitToolOutputsRequest,
    ) -> Result<UpstreamReply, Error> {
        self.open(
            caller,
            submit_tool_outputs(
                &request.thread_id,
                &request.run_id,
                request.tool_outputs.as_ref(),
            )?
            .streamed(),
        )
        .await
    }

    /// `POST /threads/{thread_id}/runs/{run_id}/cancel`
    pub async fn cancel_run(&self, caller: &Caller, request: &CancelRunRequest) -> Answered<Run> {
        let target = target(
            "/threads/{thread_id}/runs/{run_id}/cancel",
            &[&request.thread_id, &request.run_id],
        )?;
        self.send_cancel(
            caller,
            request,
            Request::post(target, Idempotency::Idempotent),
        )
        .await
    }

    /// `GET /threads/{thread_id}/runs/{run_id}/steps`
    pub async fn list_run_steps(
        &self,
        caller: &Caller,
        request: &ListRunStepsRequest,
    ) -> Answered<ListRunStepsResponse> {
        let target = target(
            "/threads/{thread_id}/runs/{run_id}/steps",
            &[&request.thread_id, &request.run_id],
        )?;
        let query = Query::default().page(
            request.limit,
            request.order,
            &request.after,
            &request.before,
        )?;
        self.send(
            caller,
            Request::get(target).query(query.include(&request.include)?),
        )
        .await
    }

    /// `GET /threads/{thread_id}/runs/{run_id}/steps/{step_id}`
    pub async fn get_run_step(
        &self,
        caller: &Caller,
        request: &GetRunStepRequest,
    ) -> Answered<RunStep> {
        let route = "/threads/{thread_id}/runs/{run_id}/steps/{step_id}";
        let target = target(
            route,
            &[&request.thread_id, &request.run_id, &request.step_id],
        )?;
        self.send(
            caller,
            Request::get(target).query(Query::default().include(&request.include)?),
        )
        .await
    }
}
