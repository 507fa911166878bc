//! The gRPC services: validate, call, answer.
//!
//! Must hold: a handler knows neither HTTP nor JSON; it turns a request into one call of [`Client`]
//! and what comes back into an answer. No request takes much more memory than bytes on the wire
//! (`codec.rs`).

mod calls;
mod codec;
mod events;
mod run;

use std::{pin::Pin, sync::Arc};

use http::{HeaderMap, HeaderName};
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::task::TaskTracker;
use tonic::{Code, Request, Response, Status, Streaming, metadata::MetadataMap};

pub(crate) use codec::BoundedCodec;
pub use events::RunEvents;

use crate::{
    error::{Delivery, Error, Idempotency},
    runs::{SharedResume, Started, StreamLimits, Streams},
    server::{CallContext, Termination, TerminationStatus},
    telemetry,
    upstream::{Answer, Caller, Client},
    v1::RunEventType,
};

/// The implementation of all services.
#[derive(Debug, Clone)]
pub struct Gateway {
    upstream: Client,
    streams: Streams,
    /// Metadata that reaches the upstream.
    forwarded: Arc<[HeaderName]>,
}

impl Gateway {
    /// A gateway to `upstream` that passes on the metadata named in `forwarded`, and nothing else.
    ///
    /// # Errors
    ///
    /// What is wrong with the event log's store.
    pub fn new(
        upstream: Client,
        limits: StreamLimits,
        forwarded: impl Into<Arc<[HeaderName]>>,
    ) -> Result<Self, String> {
        Ok(Self {
            streams: Streams::new(upstream.clone(), limits)?,
            upstream,
            forwarded: forwarded.into(),
        })
    }

    /// Gives what is recorded to other replicas, within the time that a store may take.
    pub async fn close(&self) {
        self.streams.close().await;
    }

    /// What goes on after its caller has left.
    pub fn detached(&self) -> TaskTracker {
        self.streams.detached()
    }

    /// Who calls, and with what.
    fn open<M>(&self, request: Request<M>) -> (Caller, M) {
        let (caller, termination_status, message) = self.parts(request);
        termination_status.set(|cut| ended(cut, Idempotency::Idempotent).status());
        (caller, message)
    }

    /// The same for a call that must not be done twice: if it is cut while it runs, nobody knows
    /// whether it was done once.
    fn open_once<M>(&self, request: Request<M>) -> (Caller, M) {
        let (caller, termination_status, message) = self.parts(request);
        termination_status.set(|cut| ended(cut, Idempotency::NonIdempotent).status());
        (caller, message)
    }

    /// The same for a create that may be done twice if `is_repeatable` says so.
    fn open_create<M>(
        &self,
        request: Request<M>,
        is_repeatable: impl FnOnce(&M) -> bool,
    ) -> (Caller, M) {
        if is_repeatable(request.get_ref()) {
            self.open(request)
        } else {
            self.open_once(request)
        }
    }

    /// The same for a stream: if it is cut, it says how to resume. One that begins with a write
    /// must not be repeated unless it got so far as to say what it began.
    fn open_stream<M>(
        &self,
        request: Request<M>,
        idempotency: Idempotency,
    ) -> (Caller, SharedResume, M) {
        let (caller, termination_status, message) = self.parts(request);
        let resume = SharedResume::default();
        let at_cut = resume.clone();
        termination_status.set(move |cut| {
            let resume = match cut {
                Termination::Disconnect | Termination::Deadline => at_cut.abandon(),
                Termination::MaxDeadline
                | Termination::Closing
                | Termination::Panic
                | Termination::GaveWay => at_cut.hand_over(),
            };
            let is_unknown = resume.last_event == RunEventType::Unspecified && !at_cut.is_read();
            let repeatable = if is_unknown {
                idempotency
            } else {
                Idempotency::Idempotent
            };
            let error = ended(cut, repeatable);
            Error::Interrupted {
                error: Arc::new(error),
                resume,
            }
            .status()
        });
        (caller, resume, message)
    }

    fn parts<M>(&self, request: Request<M>) -> (Caller, TerminationStatus, M) {
        let (metadata, mut extensions, message) = request.into_parts();
        let CallContext {
            deadline,
            termination_status,
            record,
            account,
            held,
            ..
        } = extensions.remove().unwrap_or_default();
        let metadata = metadata.into_headers();
        let mut headers = HeaderMap::new();
        for (name, value) in metadata
            .iter()
            .filter(|(name, _)| self.forwarded.contains(name))
        {
            headers.append(name, value.clone());
        }
        (
            Caller {
                headers,
                deadline,
                retries: retries(&metadata),
                owner: account.owner,
                credential: account.credential,
                mark: self.upstream.caller_mark(account.name.as_deref()),
                name: account.name,
                call: record,
                held,
            },
            termination_status,
            message,
        )
    }
}

/// The error of a call that ends for this reason. A write that was under way when the gateway closed
/// may or may not have been done.
fn ended(termination: Termination, idempotency: Idempotency) -> Error {
    match (termination, idempotency) {
        (Termination::Deadline | Termination::MaxDeadline, _) => Error::DeadlineExceeded,
        (Termination::GaveWay, Idempotency::Idempotent) => Error::Unread,
        (Termination::Closing | Termination::GaveWay, Idempotency::NonIdempotent) => Error::Lost {
            delivery: Delivery::Unknown,
            idempotency,
            cause: "the gateway ended the call".to_owned(),
            timed_out: false,
            mendable: false,
            request_id: None,
        },
        // Nobody is told that the caller left.
        (Termination::Closing | Termination::Disconnect, _) => Error::Draining,
        (Termination::Panic, _) => Error::Unusable {
            what: "the gateway failed".to_owned(),
            request_id: None,
        },
    }
}

/// Whether this call is a retry already. Who made it goes on by itself: retries at two places
/// multiply.
fn retries(metadata: &HeaderMap) -> bool {
    const PREVIOUS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");
    const ATTEMPT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
    let number = |name: HeaderName| {
        metadata
            .get(name)
            .and_then(|value| value.to_str().ok()?.parse::<u32>().ok())
    };
    number(PREVIOUS).is_some_and(|attempts| attempts > 0)
        || number(ATTEMPT).is_some_and(|attempt| attempt > 1)
}

/// Whether what a write was answered with is about its run: not, if there is no such run for the
/// caller. It then must change nothing for those who watch one.
fn is_of_run<M>(result: &Result<Answer<M>, Error>) -> bool {
    !matches!(result, Err(error) if error.is_not_found())
}

/// The answer of a unary call.
fn answer<M>(
    call: &telemetry::Call,
    result: Result<Answer<M>, Error>,
) -> Result<Response<M>, Status> {
    match result {
        Ok(Answer { message, headers }) => Ok(Response::from_parts(
            MetadataMap::from_headers(headers),
            *message,
            http::Extensions::new(),
        )),
        Err(error) => Err(status(call, &error)),
    }
}

/// The answer of a streaming call.
fn stream(
    call: telemetry::Call,
    result: Result<Started, Error>,
) -> Result<Response<RunEvents>, Status> {
    match result {
        Ok(Started { headers, events }) => Ok(events::answer(events, headers, call)),
        Err(error) => Err(status(&call, &error)),
    }
}

/// What a conversation's caller sends. A message that cannot be read is its mistake; anything else
/// that ends the stream is its end.
fn inbound<M: Send + 'static>(
    requests: Streaming<M>,
) -> Pin<Box<dyn Stream<Item = Result<M, Error>> + Send>> {
    Box::pin(requests.map_while(|request| match request {
        Ok(message) => Some(Ok(message)),
        Err(status) if status.code() == Code::ResourceExhausted => Some(Err(Error::TooLarge {
            what: status.message().to_owned(),
        })),
        Err(status) if matches!(status.code(), Code::Internal | Code::Unimplemented) => {
            Some(Err(Error::invalid("message", status.message())))
        }
        Err(_) => None,
    }))
}

/// The status of a failed call. Telemetry gets its own words.
fn status(call: &telemetry::Call, error: &Error) -> Status {
    call.failed(error);
    error.status()
}
