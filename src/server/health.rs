//! `grpc.health.v1.Health`: the same status for the server as a whole and each of its services.
//!
//! Must hold: a watch of a service that is not there says `SERVICE_UNKNOWN` and stays open, as
//! health.proto asks; a check of it is `NOT_FOUND`. A drain is seen by all watches of what is there,
//! and ends all watches: they last for ever, and would hold the drain until its timeout.
//!
//! It stands in for tonic-health's own service, whose `Watch` of an unknown name fails. The
//! messages are that library's.

use std::{pin::Pin, sync::Arc};

use async_stream::stream;
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server,
};

/// What health answers; `None` once watches have to end.
#[derive(Debug, Clone)]
pub struct Health {
    names: Arc<[&'static str]>,
    status: watch::Sender<Option<ServingStatus>>,
}

impl Health {
    /// Everything serves.
    pub(super) fn serving(names: &[&'static str]) -> Self {
        Self {
            names: names.into(),
            status: watch::Sender::new(Some(ServingStatus::Serving)),
        }
    }

    /// Tells whoever routes calls here to stop.
    pub(super) fn not_serving(&self) {
        self.status.send_replace(Some(ServingStatus::NotServing));
    }

    /// Ends the streams of those that watch.
    pub(super) fn close(&self) {
        self.status.send_replace(None);
    }

    fn now(&self) -> HealthCheckResponse {
        response(self.status.borrow().unwrap_or(ServingStatus::NotServing))
    }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    type WatchStream =
        Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send + 'static>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if self.names.contains(&&*request.get_ref().service) {
            Ok(Response::new(self.now()))
        } else {
            Err(Status::not_found("no such service"))
        }
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let known = self.names.contains(&&*request.get_ref().service);
        let mut status = self.status.subscribe();
        let changes = stream! {
            let mut said = None;
            loop {
                let state = *status.borrow_and_update();
                let over = state.is_none();
                let mut now = state.unwrap_or(ServingStatus::NotServing);
                if !known {
                    now = ServingStatus::ServiceUnknown;
                }
                if said.replace(now) != Some(now) {
                    yield Ok(response(now));
                }
                if over || status.changed().await.is_err() {
                    break;
                }
            }
        };
        Ok(Response::new(Box::pin(changes)))
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}
