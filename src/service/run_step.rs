//! `RunStepService`.

use tonic::{Request, Response, Status};

use super::{Gateway, answer};
use crate::v1::{
    GetRunStepRequest, ListRunStepsRequest, ListRunStepsResponse, RunStep,
    run_step_service_server::RunStepService,
};

#[tonic::async_trait]
impl RunStepService for Gateway {
    async fn list_run_steps(
        &self,
        request: Request<ListRunStepsRequest>,
    ) -> Result<Response<ListRunStepsResponse>, Status> {
        let (caller, request) = self.open(request);
        answer(
            &caller.call,
            self.upstream.list_run_steps(&caller, &request).await,
        )
    }

    async fn get_run_step(
        &self,
        request: Request<GetRunStepRequest>,
    ) -> Result<Response<RunStep>, Status> {
        let (caller, request) = self.open(request);
        answer(
            &caller.call,
            self.upstream.get_run_step(&caller, &request).await,
        )
    }
}
