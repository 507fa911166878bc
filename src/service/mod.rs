//! The gRPC services: validate, call, answer.
//!
//! Must hold: a handler knows neither HTTP nor JSON; it turns a request into one call of [`rest::Client`] and what comes back into an answer.

mod run;
mod run_step;

use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use tonic::{Request, Response, Status, metadata::MetadataMap};

use crate::{
    error::Error,
    rest::{Answer, Caller, Client},
    v1::{run_service_server::RunServiceServer, run_step_service_server::RunStepServiceServer},
};

/// The implementation of both services.
#[derive(Debug, Clone)]
pub struct Gateway {
    upstream: Client,
    /// Metadata that reaches the upstream.
    forwarded: Arc<[HeaderName]>,
}

impl Gateway {
    /// A gateway to `upstream` that passes on the metadata named in `forwarded`, and nothing else.
    pub fn new(upstream: Client, forwarded: impl Into<Arc<[HeaderName]>>) -> Self {
        Self { upstream, forwarded: forwarded.into() }
    }

    /// `RunService`. Larger requests than `max_request_bytes` are answered with `OUT_OF_RANGE`.
    pub fn run_service(&self, max_request_bytes: usize) -> RunServiceServer<Self> {
        RunServiceServer::new(self.clone()).max_decoding_message_size(max_request_bytes)
    }

    /// `RunStepService`.
    pub fn run_step_service(&self, max_request_bytes: usize) -> RunStepServiceServer<Self> {
        RunStepServiceServer::new(self.clone()).max_decoding_message_size(max_request_bytes)
    }

    /// Who calls, and with what.
    fn open<M>(&self, request: Request<M>) -> (Caller, M) {
        let (metadata, _, message) = request.into_parts();
        let metadata = metadata.into_headers();
        let mut headers = HeaderMap::new();
        for name in &*self.forwarded {
            for value in metadata.get_all(name) {
                headers.append(name, value.clone());
            }
        }
        (Caller { headers }, message)
    }
}

/// The answer of a unary call.
fn answer<M>(result: Result<Answer<M>, Error>) -> Result<Response<M>, Status> {
    match result {
        Ok(Answer { message, headers }) => {
            Ok(Response::from_parts(MetadataMap::from_headers(headers), message, http::Extensions::new()))
        }
        Err(error) => {
            tracing::info!(error = %error.log(), "call failed");
            Err(error.status())
        }
    }
}
