//! `RunService`.

use tonic::{Request, Response, Status, Streaming};

use super::{Gateway, RunEvents, answer, inbound, status, stream};
use crate::{
    error::Idempotency,
    events::Started,
    server::CallContext,
    v1::{
        CancelRunRequest, ConverseRunRequest, CreateRunRequest, CreateThreadAndRunRequest,
        GetRunRequest, ListRunsRequest, ListRunsResponse, ModifyRunRequest, Run,
        StreamCreateRunRequest, StreamCreateThreadAndRunRequest, StreamSubmitToolOutputsRequest,
        SubmitToolOutputsRequest, WaitRunRequest, WatchRunRequest, run_service_server::RunService,
    },
};

#[tonic::async_trait]
impl RunService for Gateway {
    type StreamCreateRunStream = RunEvents;
    type StreamCreateThreadAndRunStream = RunEvents;
    type StreamSubmitToolOutputsStream = RunEvents;
    type WatchRunStream = RunEvents;
    type ConverseRunStream = RunEvents;

    async fn create_run(
        &self,
        request: Request<CreateRunRequest>,
    ) -> Result<Response<Run>, Status> {
        let (caller, request) = self.open_once(request);
        answer(
            &caller.call,
            self.upstream.create_run(&caller, &request).await,
        )
    }

    async fn create_thread_and_run(
        &self,
        request: Request<CreateThreadAndRunRequest>,
    ) -> Result<Response<Run>, Status> {
        let (caller, request) = self.open_once(request);
        answer(
            &caller.call,
            self.upstream.create_thread_and_run(&caller, &request).await,
        )
    }

    async fn list_runs(
        &self,
        request: Request<ListRunsRequest>,
    ) -> Result<Response<ListRunsResponse>, Status> {
        let (caller, request) = self.open(request);
        answer(
            &caller.call,
            self.upstream.list_runs(&caller, &request).await,
        )
    }

    async fn get_run(&self, request: Request<GetRunRequest>) -> Result<Response<Run>, Status> {
        let (caller, request) = self.open(request);
        answer(&caller.call, self.upstream.get_run(&caller, &request).await)
    }

    async fn modify_run(
        &self,
        request: Request<ModifyRunRequest>,
    ) -> Result<Response<Run>, Status> {
        let (caller, request) = self.open(request);
        let answered = self.upstream.modify_run(&caller, &request).await;
        self.streams.touched(&request.thread_id, &request.run_id);
        answer(&caller.call, answered)
    }

    async fn submit_tool_outputs(
        &self,
        request: Request<SubmitToolOutputsRequest>,
    ) -> Result<Response<Run>, Status> {
        let (caller, request) = self.open_once(request);
        let answered = self.upstream.submit_tool_outputs(&caller, &request).await;
        self.streams.touched(&request.thread_id, &request.run_id);
        answer(&caller.call, answered)
    }

    async fn cancel_run(
        &self,
        request: Request<CancelRunRequest>,
    ) -> Result<Response<Run>, Status> {
        let (caller, request) = self.open(request);
        let answered = self.upstream.cancel_run(&caller, &request).await;
        self.streams.touched(&request.thread_id, &request.run_id);
        answer(&caller.call, answered)
    }

    async fn stream_create_run(
        &self,
        request: Request<StreamCreateRunRequest>,
    ) -> Result<Response<RunEvents>, Status> {
        let (caller, resume, request) = self.open_stream(request, Idempotency::NonIdempotent);
        stream(
            caller.call.clone(),
            self.streams.create_run(caller, request, resume).await,
        )
    }

    async fn stream_create_thread_and_run(
        &self,
        request: Request<StreamCreateThreadAndRunRequest>,
    ) -> Result<Response<RunEvents>, Status> {
        let (caller, resume, request) = self.open_stream(request, Idempotency::NonIdempotent);
        stream(
            caller.call.clone(),
            self.streams
                .create_thread_and_run(caller, request, resume)
                .await,
        )
    }

    async fn stream_submit_tool_outputs(
        &self,
        request: Request<StreamSubmitToolOutputsRequest>,
    ) -> Result<Response<RunEvents>, Status> {
        let (caller, resume, request) = self.open_stream(request, Idempotency::NonIdempotent);
        stream(
            caller.call.clone(),
            self.streams
                .submit_tool_outputs(caller, request, resume)
                .await,
        )
    }

    async fn converse_run(
        &self,
        request: Request<Streaming<ConverseRunRequest>>,
    ) -> Result<Response<RunEvents>, Status> {
        let (caller, resume, requests) = self.open_stream(request, Idempotency::NonIdempotent);
        stream(
            caller.call.clone(),
            self.streams
                .converse(caller, inbound(requests), resume)
                .await,
        )
    }

    async fn watch_run(
        &self,
        request: Request<WatchRunRequest>,
    ) -> Result<Response<RunEvents>, Status> {
        let drain = request
            .extensions()
            .get::<CallContext>()
            .map(|context| context.drain.clone())
            .unwrap_or_default();
        let (caller, resume, request) = self.open_stream(request, Idempotency::Idempotent);
        stream(
            caller.call.clone(),
            self.streams
                .watch_run(&caller, &request, resume, drain.turn())
                .await
                .map(Started::from),
        )
    }

    async fn wait_run(&self, request: Request<WaitRunRequest>) -> Result<Response<Run>, Status> {
        let (caller, request) = self.open(request);
        self.streams
            .wait_run(&caller, &request)
            .await
            .map(Response::new)
            .map_err(|error| status(&caller.call, &error))
    }
}
