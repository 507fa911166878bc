//! One call, from its headers to the handler's answer: deadline, end from outside, telemetry. What
//! follows is `answer`.
//!
//! Must hold: whatever bounds or counts a call is held by [`Call`], which moves from the response's
//! future into its body and goes with the last byte, with the caller, or with what ends it. A call
//! takes its place when its first message is there, for which there is a time. A call that is cut
//! ends with a gRPC status (trailers only if the head was not sent yet) and lets go of its handler
//! at once, even if the caller reads nothing. A caller's leaving is `CANCELLED`, never success.
//!
//! Why not tower's layers: they let go when the response head is there, and that is when a stream
//! begins. Why not tonic's `timeout`: it bounds only the head and answers CANCELLED.

use std::{
    convert::Infallible,
    future::{poll_fn, ready},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{ALLOW, CONTENT_TYPE},
};
use http_body::Body as _;
use tokio::{select, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body};
use tower::BoxError;

use super::{
    access::{Access, Account, Peer, Tenant},
    answer::{CallBody, EncodedBody, Reaper},
    deadline,
    drain::Drain,
    message::{self, Messages, Rules},
    open_call::{Call, Connected, PermitSource},
    routes::{Routes, is_asking_health, is_grpc, is_infra},
    termination::{Termination, TerminationStatus},
    trailers::{add_reason, code},
};
use crate::{
    error::{Error, with_reason},
    shares::{GivesWay, HeldBytes, HeldPart, Owner, Shares},
    telemetry::{self, Telemetry},
};

/// What a handler may know of its call, as an extension of the request.
#[derive(Debug, Clone, Default)]
pub struct CallContext {
    /// When the call has to be over, if the caller set a deadline. It is cut then in any case: this
    /// is for what should not be begun, or not be waited for.
    pub deadline: Option<Instant>,
    /// What the call answers when it is cut.
    pub termination_status: TerminationStatus,
    /// What notes its events and its failure.
    pub record: telemetry::Call,
    /// Whose share the call counts to.
    pub account: Account,
    /// The bytes that are held for it.
    pub held: HeldBytes,
    /// The drain of the server.
    pub drain: Drain,
}

/// The calls of one connection.
#[derive(Clone)]
pub(super) struct Calls {
    pub(super) routes: Arc<Routes>,
    pub(super) access: Access,
    pub(super) peer: Peer,
    pub(super) drain: Drain,
    pub(super) max_deadline: Duration,
    pub(super) telemetry: Telemetry,
    /// Bytes of a call's metadata, and of one message.
    pub(super) max_metadata: usize,
    pub(super) max_message: usize,
    /// Messages of answers with more bytes are packed.
    pub(super) pack_above: Option<usize>,
    /// Calls that are open, on all connections together.
    pub(super) call_shares: Shares,
    /// The same for streams of health and reflection.
    pub(super) infra_shares: Shares,
    /// Bytes that are held for calls.
    pub(super) byte_shares: Shares,
    /// How long the first message of a call may take to come.
    pub(super) message_timeout: Duration,
    /// Ends answers that nobody reads.
    pub(super) reaper: Reaper,
    /// What they have in common.
    pub(super) connected: Connected,
}

/// A call's answer, once there is one.
type Answering = Pin<Box<dyn Future<Output = Result<Response<CallBody>, Infallible>> + Send>>;

impl<B> hyper::service::Service<Request<B>> for Calls
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<CallBody>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, mut request: Request<B>) -> Self::Future {
        if self.access.strip(&self.peer, request.headers_mut()) {
            self.telemetry.metrics().mesh_headers_stripped.inc();
        }
        let (began, path, headers) = (Instant::now(), request.uri().path(), request.headers());
        let Some(renewed) = self.access.renewal(&self.peer, path, headers) else {
            return self.begin(request, began);
        };
        let calls = self.clone();
        Box::pin(async move {
            renewed.wait().await;
            calls.begin(request, began).await
        })
    }
}

impl Calls {
    /// Begins a call whose caller can be decided on. It came at `began`: a deadline counts from then.
    fn begin<B>(&self, mut request: Request<B>, began: Instant) -> Answering
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let size = metadata_size(&request);
        let timeout = deadline::take(request.headers_mut());
        let encoding = message::take_encoding(request.headers_mut());
        let deadline = timeout.as_ref().ok().copied().flatten().map(|timeout| {
            if timeout > self.max_deadline {
                (began + self.max_deadline, Termination::MaxDeadline)
            } else {
                (began + timeout, Termination::Deadline)
            }
        });
        let path = request.uri().path();
        let record = self.telemetry.call(path, request.headers());
        let mut call = Call::begin(&self.connected, record, is_infra(path), deadline);
        // First of all: proxies repeat other methods, which may be writes here.
        if request.method() != Method::POST {
            let mut answer =
                call.refuse(Error::invalid("the HTTP method", "must be POST").status());
            *answer.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            let post = HeaderValue::from_static("POST");
            answer.headers_mut().insert(ALLOW, post);
            return Box::pin(ready(Ok(answer)));
        }
        if !is_grpc(request.headers().get(CONTENT_TYPE)) {
            // A browser sends other types to any server without asking first. The status is what
            // the specification of gRPC over HTTP/2 asks for.
            let refused = Error::invalid("content-type", "must be application/grpc");
            let mut answer = call.refuse(refused.status());
            *answer.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Box::pin(ready(Ok(answer)));
        }
        let is_http1 = request.version() < Version::HTTP_2;
        if is_http1 && !is_infra(path) && self.routes.takes_many_messages(path) {
            // Behind messages that are not read nobody sees there that the caller has left.
            let refused =
                Status::unimplemented("a method that takes a stream of messages needs HTTP/2");
            return Box::pin(ready(Ok(call.refuse(refused))));
        }
        let admitted = self
            .bounded(size)
            .and_then(|()| self.access.admit(&self.peer, path, request.headers()))
            .and_then(|tenant| encoding.map(|packed| (tenant, packed)))
            .and_then(|(tenant, packed)| {
                let headers = request.headers();
                if let Some(Tenant(name)) = &tenant {
                    call.record.by(name);
                }
                let account = self.access.account(&self.peer, tenant.as_ref(), headers);
                call.held = self.held(&call, path, account.owner)?;
                Ok((account, packed))
            });
        let (account, packed) = match admitted.and_then(|admitted| timeout.map(|_| admitted)) {
            Ok(admitted) => admitted,
            Err(error) => {
                call.record.failed(&error);
                return Box::pin(ready(Ok(call.refuse(error.status()))));
            }
        };
        let (termination_status, record, drain) = (
            call.termination_status.clone(),
            call.record.clone(),
            self.drain.clone(),
        );
        let source = self.permit_source(request.uri().path(), account.owner);
        let (held, whose) = (call.held.clone(), account.clone());
        request.extensions_mut().insert(CallContext {
            deadline: deadline.map(|(at, _)| at),
            termination_status,
            record,
            account,
            held,
            drain,
        });
        if self.pack_above.is_some() && message::accepts_gzip(request.headers()) {
            call.pack_above = self.pack_above;
        }
        let rules = self.rules(request.uri().path(), packed);
        let (held, message_timeout) = (call.held.part(), self.message_timeout);
        let request = request.map(|body| Messages::new(body, rules, held));
        let (routes, reaper) = (Arc::clone(&self.routes), self.reaper.clone());
        // Reflection's callers may wait for its head before they ask. Its permits give way.
        let answers_first = call.is_infra && !rules.one;
        Box::pin(async move {
            let mut request = request;
            let messages = request.body_mut();
            let came = if answers_first {
                messages.within(message_timeout);
                Ok(())
            } else {
                call.first_message(messages, message_timeout).await
            };
            // Not before: whoever sends no message keeps nobody out.
            if let Err(status) = came.and_then(|()| call.take_permit(&source)) {
                return Ok(call.refuse(status));
            }
            call.message = request.body_mut().take_held();
            let request = request.map(Body::new);
            call.answer(whose, &routes, request, &reaper).await
        })
    }

    /// Refuses more metadata than a call may have. The library takes more, so that there is an
    /// answer of gRPC's.
    fn bounded(&self, size: usize) -> Result<(), Error> {
        let limit = self.max_metadata;
        if size <= limit {
            return Ok(());
        }
        Err(Error::TooLarge {
            what: format!("the metadata has more than {limit} bytes (--max-metadata-bytes)"),
        })
    }

    /// What the messages of a call may be.
    fn rules(&self, path: &str, packed: bool) -> Rules {
        let (limit, flag) = if is_infra(path) {
            (INFRA_MESSAGE, "the limit of health and reflection")
        } else {
            (self.max_message, "--max-request-bytes")
        };
        let one = self.routes.takes_one_message(path);
        Rules {
            limit,
            flag,
            one,
            packed,
        }
    }

    /// An account for what is held for a call. Those of health and reflection, whom nobody knows,
    /// have a share of their own together.
    fn held(&self, call: &Call, path: &str, owner: Owner) -> Result<HeldBytes, Error> {
        let owner = if is_infra(path) {
            Owner::of(&"health and reflection")
        } else {
            owner
        };
        let allowance = if call.record.streams() && !is_infra(path) {
            STREAM_ALLOWANCE
        } else {
            CALL_ALLOWANCE
        };
        Ok(HeldBytes::open(&self.byte_shares, owner, allowance)?)
    }

    /// Where a call takes its permit from.
    fn permit_source(&self, path: &str, owner: Owner) -> PermitSource {
        let (shares, owner) = match path {
            path if is_asking_health(path) => (None, owner),
            // Nobody needs a token for them, so nobody's name is known.
            path if is_infra(path) => (Some(&self.infra_shares), self.peer.account().owner),
            _ => (Some(&self.call_shares), owner),
        };
        PermitSource {
            shares: shares.cloned(),
            owner,
        }
    }
}

impl Call {
    async fn answer(
        mut self,
        account: Account,
        routes: &Routes,
        request: Request<Body>,
        reaper: &Reaper,
    ) -> Result<Response<CallBody>, Infallible> {
        if account.is_known() {
            self.becomes_known();
        }
        let handler = routes.call(request);
        // A tuple drops the call first, which says why, and then the handler.
        let mut pending = (self, handler);
        let answered = poll_fn(|cx| {
            let (call, handler) = &mut pending;
            call.poll_unless_cut(cx, |cx| handler.as_mut().poll(cx))
        })
        .await;
        let (mut call, _handler) = pending;
        // It may have become so just now.
        if account.is_known() {
            call.becomes_known();
        }
        match answered {
            Ok(Ok(response)) => {
                // The handler is done with it.
                call.message = HeldPart::default();
                let (mut head, body) = response.into_parts();
                let encoded = head.extensions.remove::<EncodedBody>();
                let body = encoded.and_then(|body| body.take()).unwrap_or(body);
                if body.is_end_stream() {
                    call.code = Some(code(&head.headers));
                    add_reason(&mut head.headers);
                    return Ok(Response::from_parts(head, CallBody::default()));
                }
                if call.pack_above.is_some() {
                    let gzip = HeaderValue::from_static("gzip");
                    head.headers.insert("grpc-encoding", gzip);
                }
                Ok(Response::from_parts(
                    head,
                    CallBody::new(call, body, reaper),
                ))
            }
            Ok(Err(never)) => match never {},
            Err(status) => Ok(call.refuse(status)),
        }
    }

    /// Waits for the first message. As long as it has not come, the call gives way.
    async fn first_message<B>(
        &mut self,
        messages: &mut Messages<B>,
        limit: Duration,
    ) -> Result<(), Status>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        // A call on a connection that has ended must not reach a handler, which may write.
        if let Some(cut) = self.termination_due() {
            return Err(self.termination_status.end(cut));
        }
        let held = self.held.clone();
        let mut came = pin!(poll_fn(|cx| {
            self.poll_unless_cut(cx, |cx| messages.poll_first(cx))
                .map(|polled| polled?)
        }));
        // Mostly it is there.
        if let Poll::Ready(came) = poll_fn(|cx| Poll::Ready(came.as_mut().poll(cx))).await {
            return came;
        }
        let waiting = Arc::new(Waiting::default());
        let holder = Arc::downgrade(&waiting);
        held.give_way(Instant::now(), holder);
        let came = select! {
            came = came => Ok(came),
            () = waiting.gave_way.cancelled() => {
                Err(held.limit().map_or(Error::Unread, Error::Overloaded))
            }
            () = tokio::time::sleep(limit) => Err(Error::MessageTimeout { limit }),
        };
        held.stay();
        came.unwrap_or_else(|error| {
            self.record.failed(&error);
            Err(error.status())
        })
    }

    /// The call is over before there was a response head.
    fn refuse(mut self, status: Status) -> Response<CallBody> {
        self.code = Some(status.code());
        with_reason(status).into_http()
    }
}

/// A call whose message has not come.
#[derive(Debug, Default)]
struct Waiting {
    gave_way: CancellationToken,
}

impl GivesWay for Waiting {
    fn give_way(&self) {
        self.gave_way.cancel();
    }
}

/// What a call takes that is not counted byte by byte, and a stream: buffers here and in the HTTP
/// libraries, tasks, and messages that are small.
const CALL_ALLOWANCE: usize = 16 << 10;
const STREAM_ALLOWANCE: usize = 48 << 10;

/// The largest message of health and reflection, in bytes: they are open to all.
const INFRA_MESSAGE: usize = 4 << 10;

/// A request's metadata as HTTP/2 counts it: name, value and 32 more for each.
fn metadata_size<B>(request: &Request<B>) -> usize {
    let headers = request.headers().iter();
    let fields = headers.map(|(name, value)| name.as_str().len() + value.len() + 32);
    let path = request.uri().path_and_query();
    fields.sum::<usize>() + path.map_or(0, |path| path.as_str().len())
}
