//! One upstream request, as metrics and traces see it: from its sending to the last byte of its
//! answer.

use http::{HeaderMap, Method, StatusCode};
use tokio::time::Instant;

use super::{Call, Telemetry, trace};
use crate::error::{Delivery, Error};

/// A request under way. Dropped without an end it was given up, because its caller left or its
/// deadline passed.
#[derive(Debug)]
pub struct UpstreamRequest {
    telemetry: Telemetry,
    method: Method,
    route: &'static str,
    began: Instant,
    span: trace::Client,
    status: Option<StatusCode>,
    timed: bool,
    error: Option<&'static str>,
}

impl Telemetry {
    /// A request for `call` is about to be sent, to `route`, such as `/threads/{thread_id}/runs`.
    /// `attempt` counts from 0.
    pub fn upstream_request(
        &self,
        call: &Call,
        method: &Method,
        route: &'static str,
        attempt: u32,
    ) -> UpstreamRequest {
        if attempt > 0 {
            self.metrics().retries.with_label_values(&[route]).inc();
        }
        self.metrics().requests_active.inc();
        UpstreamRequest {
            telemetry: self.clone(),
            method: method.clone(),
            route,
            began: Instant::now(),
            span: self.0.tracer.client(call.span(), method, route, attempt),
            status: None,
            timed: false,
            error: Some("cancelled"),
        }
    }
}

impl UpstreamRequest {
    /// Writes the trace context into the request's headers, where there is one to write.
    pub fn inject(&self, headers: &mut HeaderMap) {
        self.span.inject(headers);
    }

    /// The answer's head is there.
    pub fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// How it ended. For an event stream, how it began: its span lasts as long as it does, but its
    /// duration, for the metrics, ends with the head. How long runs take says nothing of how fast
    /// the upstream answers.
    pub fn ended<T>(&mut self, result: &Result<T, Error>) {
        let failed = result.as_ref().err();
        self.error = failed.and_then(kind);
        if let Some(error) = failed {
            self.telemetry.failed(error);
        }
        self.time();
    }

    /// The event stream broke.
    pub fn broke(&mut self) {
        self.error = Some("lost");
    }

    fn time(&mut self) {
        self.timed = true;
        let status = self.status.as_ref().map_or("", StatusCode::as_str);
        let labels = [
            self.method.as_str(),
            self.route,
            status,
            self.error.unwrap_or_default(),
        ];
        self.telemetry
            .metrics()
            .requests
            .with_label_values(&labels)
            .observe(self.began.elapsed().as_secs_f64());
    }
}

impl Drop for UpstreamRequest {
    fn drop(&mut self) {
        self.telemetry.metrics().requests_active.dec();
        if !self.timed {
            self.time();
        }
        self.span.ended(self.status, self.error);
    }
}

/// What kind of failure an error is, where the upstream's status does not say it.
fn kind(error: &Error) -> Option<&'static str> {
    match error {
        Error::Rejected(_) => None,
        Error::Lost {
            delivery: Delivery::Unsent,
            ..
        } => Some("unreachable"),
        Error::Lost {
            delivery: Delivery::Refused,
            ..
        } => Some("refused"),
        Error::Lost {
            timed_out: true, ..
        } => Some("timeout"),
        Error::Lost { .. } => Some("lost"),
        _ => Some("unusable"),
    }
}
