//! The calls of `RunService` that are written by hand: streams, and the wait for a run. All others
//! are generated (`calls.rs`).

use tonic::{Request, Response, Status, Streaming};

use super::{Gateway, RunEvents, inbound, status, stream};
use crate::{
    error::Idempotency,
    server::CallContext,
    v1::{
        ConverseRunRequest, ResumeRunRequest, Run, StreamCreateRunRequest,
        StreamCreateThreadAndRunRequest, StreamSubmitToolOutputsRequest, WaitRunRequest,
        WatchRunRequest,
    },
};

pub(super) async fn stream_create_run(
    gateway: &Gateway,
    request: Request<StreamCreateRunRequest>,
) -> Result<Response<RunEvents>, Status> {
    let leave = leave(&request);
    // A repeat looks for what the first call has made.
    let idempotency = if request.get_ref().request_id.is_empty() {
        Idempotency::NonIdempotent
    } else {
        Idempotency::Idempotent
    };
    let (caller, resume, request) = gateway.open_stream(request, idempotency);
    stream(
        caller.call.clone(),
        gateway
            .streams
            .create_run(caller, request, resume, leave)
            .await,
    )
}

pub(super) async fn stream_create_thread_and_run(
    gateway: &Gateway,
    request: Request<StreamCreateThreadAndRunRequest>,
) -> Result<Response<RunEvents>, Status> {
    let leave = leave(&request);
    let (caller, resume, request) = gateway.open_stream(request, Idempotency::NonIdempotent);
    stream(
        caller.call.clone(),
        gateway
            .streams
            .create_thread_and_run(caller, request, resume, leave)
            .await,
    )
}

pub(super) async fn stream_submit_tool_outputs(
    gateway: &Gateway,
    request: Request<StreamSubmitToolOutputsRequest>,
) -> Result<Response<RunEvents>, Status> {
    let leave = leave(&request);
    let (caller, resume, request) = gateway.open_stream(request, Idempotency::NonIdempotent);
    stream(
        caller.call.clone(),
        gateway
            .streams
            .submit_tool_outputs(caller, request, resume, leave)
            .await,
    )
}

pub(super) async fn converse_run(
    gateway: &Gateway,
    request: Request<Streaming<ConverseRunRequest>>,
) -> Result<Response<RunEvents>, Status> {
    let leave = leave(&request);
    let (caller, resume, requests) = gateway.open_stream(request, Idempotency::NonIdempotent);
    stream(
        caller.call.clone(),
        gateway
            .streams
            .converse(caller, inbound(requests), resume, leave)
            .await,
    )
}

pub(super) async fn watch_run(
    gateway: &Gateway,
    request: Request<WatchRunRequest>,
) -> Result<Response<RunEvents>, Status> {
    let leave = leave(&request);
    let (caller, resume, request) = gateway.open_stream(request, Idempotency::Idempotent);
    stream(
        caller.call.clone(),
        gateway
            .streams
            .watch_run(&caller, &request, resume, leave)
            .await,
    )
}

pub(super) async fn resume_run(
    gateway: &Gateway,
    request: Request<ResumeRunRequest>,
) -> Result<Response<RunEvents>, Status> {
    let leave = leave(&request);
    let (caller, resume, request) = gateway.open_stream(request, Idempotency::Idempotent);
    stream(
        caller.call.clone(),
        gateway
            .streams
            .resume_run(caller, &request, resume, leave)
            .await,
    )
}

pub(super) async fn wait_run(
    gateway: &Gateway,
    request: Request<WaitRunRequest>,
) -> Result<Response<Run>, Status> {
    let (caller, request) = gateway.open(request);
    gateway
        .streams
        .wait_run(&caller, &request)
        .await
        .map(Response::new)
        .map_err(|error| status(&caller.call, &error))
}

/// Ready when a stream that can be resumed elsewhere has to leave.
fn leave<M>(request: &Request<M>) -> impl Future<Output = ()> + Send + use<M> {
    let context = request.extensions().get::<CallContext>();
    let drain = context.map(|context| context.drain.clone());
    drain.unwrap_or_default().turn()
}
