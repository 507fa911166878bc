//! `RunService`.

use tonic::{Request, Response, Status};

use super::{Gateway, answer};
use crate::v1::{
    CancelRunRequest, CreateRunRequest, CreateThreadAndRunRequest, GetRunRequest, ListRunsRequest, ListRunsResponse,
    ModifyRunRequest, Run, SubmitToolOutputsRequest, run_service_server::RunService,
};

#[tonic::async_trait]
impl RunService for Gateway {
    async fn create_run(&self, request: Request<CreateRunRequest>) -> Result<Response<Run>, Status> {
        let (caller, request) = self.open(request);
        answer(self.upstream.create_run(&caller, &request).await)
    }

    async fn create_thread_and_run(&self, request: Request<CreateThreadAndRunRequest>) -> Result<Response<Run>, Status> {
        let (caller, request) = self.open(request);
        answer(self.upstream.create_thread_and_run(&caller, &request).await)
    }

    async fn list_runs(&self, request: Request<ListRunsRequest>) -> Result<Response<ListRunsResponse>, Status> {
        let (caller, request) = self.open(request);
        answer(self.upstream.list_runs(&caller, &request).await)
    }

    async fn get_run(&self, request: Request<GetRunRequest>) -> Result<Response<Run>, Status> {
        let (caller, request) = self.open(request);
        answer(self.upstream.get_run(&caller, &request).await)
    }

    async fn modify_run(&self, request: Request<ModifyRunRequest>) -> Result<Response<Run>, Status> {
        let (caller, request) = self.open(request);
        answer(self.upstream.modify_run(&caller, &request).await)
    }

    async fn submit_tool_outputs(&self, request: Request<SubmitToolOutputsRequest>) -> Result<Response<Run>, Status> {
        let (caller, request) = self.open(request);
        answer(self.upstream.submit_tool_outputs(&caller, &request).await)
    }

    async fn cancel_run(&self, request: Request<CancelRunRequest>) -> Result<Response<Run>, Status> {
        let (caller, request) = self.open(request);
        answer(self.upstream.cancel_run(&caller, &request).await)
    }
}
