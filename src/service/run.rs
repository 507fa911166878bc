//! The calls of `RunService` that are written by hand: streams, and the wait for a run. All others
//! are generated (`calls.rs`).

use std::pin::Pin;

use tonic::{Request, Response, Status, Streaming};

use super::{Gateway, RunEvents, inbound, status, stream};
use crate::{
    error::{Error, Idempotency},
    runs::{SharedResume, Started, Streams},
    server::CallContext,
    upstream::Caller,
    v1::{
        ConverseRunRequest, ResumeRunRequest, Run, StreamCreateRunRequest,
        StreamCreateThreadAndRunRequest, StreamSubmitToolOutputsRequest, WaitRunRequest,
        WatchRunRequest,
    },
};

pub(super) async fn stream_create_run(
    gateway: &Gateway,
    request: Request<StreamCreateRunRequest>,
    idempotency: Idempotency,
) -> Result<Response<RunEvents>, Status> {
    // A repeat looks for what the first call has made.
    let idempotency = if request.get_ref().request_id.is_empty() {
        idempotency
    } else {
        Idempotency::Idempotent
    };
    streaming(gateway, request, idempotency, |streams, call| async move {
        streams
            .create_run(call.caller, call.message, call.resume, call.leave)
            .await
    })
    .await
}

pub(super) async fn stream_create_thread_and_run(
    gateway: &Gateway,
    request: Request<StreamCreateThreadAndRunRequest>,
    idempotency: Idempotency,
) -> Result<Response<RunEvents>, Status> {
    streaming(gateway, request, idempotency, |streams, call| async move {
        streams
            .create_thread_and_run(call.caller, call.message, call.resume, call.leave)
            .await
    })
    .await
}

pub(super) async fn stream_submit_tool_outputs(
    gateway: &Gateway,
    request: Request<StreamSubmitToolOutputsRequest>,
    idempotency: Idempotency,
) -> Result<Response<RunEvents>, Status> {
    streaming(gateway, request, idempotency, |streams, call| async move {
        streams
            .submit_tool_outputs(call.caller, call.message, call.resume, call.leave)
            .await
    })
    .await
}

pub(super) async fn converse_run(
    gateway: &Gateway,
    request: Request<Streaming<ConverseRunRequest>>,
    idempotency: Idempotency,
) -> Result<Response<RunEvents>, Status> {
    streaming(gateway, request, idempotency, |streams, call| async move {
        streams
            .converse(call.caller, inbound(call.message), call.resume, call.leave)
            .await
    })
    .await
}

pub(super) async fn watch_run(
    gateway: &Gateway,
    request: Request<WatchRunRequest>,
    idempotency: Idempotency,
) -> Result<Response<RunEvents>, Status> {
    streaming(gateway, request, idempotency, |streams, call| async move {
        streams
            .watch_run(&call.caller, &call.message, call.resume, call.leave)
            .await
    })
    .await
}

pub(super) async fn resume_run(
    gateway: &Gateway,
    request: Request<ResumeRunRequest>,
    idempotency: Idempotency,
) -> Result<Response<RunEvents>, Status> {
    streaming(gateway, request, idempotency, |streams, call| async move {
        streams
            .resume_run(call.caller, &call.message, call.resume, call.leave)
            .await
    })
    .await
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
        .inspect(|run| caller.call.saw(run))
        .map(Response::new)
        .map_err(|error| status(&caller.call, &error))
}

/// A streaming call that begins.
struct Begun<M> {
    caller: Caller,
    /// How it is resumed, at any time.
    resume: SharedResume,
    /// Ready when a stream that can be resumed elsewhere has to leave.
    leave: Pin<Box<dyn Future<Output = ()> + Send>>,
    message: M,
}

/// Answers a call with the stream that `begin` makes of it.
async fn streaming<M, F>(
    gateway: &Gateway,
    request: Request<M>,
    idempotency: Idempotency,
    begin: impl FnOnce(Streams, Begun<M>) -> F,
) -> Result<Response<RunEvents>, Status>
where
    F: Future<Output = Result<Started, Error>>,
{
    let context = request.extensions().get::<CallContext>();
    let drain = context.map(|context| context.drain.clone());
    let leave = Box::pin(drain.unwrap_or_default().turn());
    let (caller, resume, message) = gateway.open_stream(request, idempotency);
    let call = caller.call.clone();
    let begun = Begun {
        caller,
        resume,
        leave,
        message,
    };
    // In a box: it is large, and needed no longer than until the stream begins.
    let started = Box::pin(begin(gateway.streams.clone(), begun)).await;
    stream(call, started)
}
