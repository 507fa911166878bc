//! One call, from its headers to the last byte of its answer: deadline, end from outside,
//! telemetry.
//!
//! Must hold: whatever bounds or counts a call is held by [`Call`], which moves from the response's
//! future into its body and goes with the last byte, or with the caller. A call that is cut ends
//! with a gRPC status (trailers only if the head was not sent yet) and lets go of its handler at
//! once, even if the caller reads nothing; only an answer that is no stream, and so is there
//! already, may wait for its reader as long as the connection lasts. A caller's leaving is
//! `CANCELLED`, never success. Whoever drops a handler has said why before
//! ([`TerminationStatus::end`]): a handler for which nothing was said did not lose its caller.
//!
//! Why not tower's layers: they let go when the response head is there, and that is when a stream
//! begins. Why not tonic's `timeout`: it bounds only the head and answers CANCELLED.

use std::{
    any::Any,
    convert::Infallible,
    fmt,
    future::{poll_fn, ready},
    panic::{self, AssertUnwindSafe},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
};
use http_body::{Body as _, Frame, SizeHint};
use tokio::{select, sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{Code, Status, body::Body};
use tower::BoxError;

use super::{
    access::{Access, Account, Peer, Tenant},
    deadline,
    drain::Drain,
    jitter::jittered,
    message::{self, Messages, Rules},
    routes::{Routes, is_asking_health, is_grpc, is_infra},
};
use crate::{
    error::Error,
    registered_waker::RegisteredWaker,
    shares::{Owner, Permit, Shares},
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
    /// The drain of the server.
    pub drain: Drain,
}

/// Why a call ended before its handler did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Termination {
    /// The caller left.
    Disconnect,
    /// Its deadline passed.
    Deadline,
    /// Its connection, or the whole server, is about to close, or it has reached its own age.
    Closing,
    /// Its handler panicked.
    Panic,
}

impl Termination {
    fn status(self) -> Status {
        match self {
            Self::Disconnect => Status::cancelled("the caller left"),
            Self::Panic => Status::internal("the gateway failed"),
            Self::Deadline => {
                Status::deadline_exceeded("the deadline passed before the call was over")
            }
            Self::Closing => {
                Status::unavailable("the gateway ends this call, or its connection: call again")
            }
        }
    }
}

/// What a call answers when it is cut. Unless it is set, that is `DEADLINE_EXCEEDED` or
/// `UNAVAILABLE`. It also is how a handler learns why it is dropped.
///
/// A handler changes it where those would mislead: UNAVAILABLE is repeated by meshes, which a write
/// that may have reached the upstream must not be; and a stream can say how to resume.
#[derive(Clone, Default)]
pub struct TerminationStatus(Arc<Mutex<Option<Words>>>);

type Words = Box<dyn Fn(Termination) -> Status + Send>;

impl TerminationStatus {
    /// From now on a cut answers what `words` says.
    pub fn set(&self, words: impl Fn(Termination) -> Status + Send + 'static) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(words));
    }

    /// The call ends for this reason. Called before the handler is dropped.
    fn end(&self, cut: Termination) -> Status {
        let words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        words
            .as_ref()
            .map_or_else(|| cut.status(), |words| words(cut))
    }
}

impl fmt::Debug for TerminationStatus {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("TerminationStatus")
            .finish_non_exhaustive()
    }
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
    /// The age at which a call is cut.
    pub(super) max_age: Option<Duration>,
    /// Calls that are open, on all connections together.
    pub(super) call_shares: Shares,
    /// The same for streams of health and reflection.
    pub(super) infra_shares: Shares,
    /// Cuts them all.
    pub(super) end: CancellationToken,
    /// How many are open.
    pub(super) open: watch::Sender<usize>,
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
        let deadline = timeout
            .as_ref()
            .ok()
            .copied()
            .flatten()
            .map(|timeout| began + timeout.min(self.max_deadline));
        let path = request.uri().path();
        let mut call = Call::begin(
            self,
            self.telemetry.call(path, request.headers()),
            path,
            deadline,
        );
        // First of all: proxies repeat other methods, which may be writes here.
        if request.method() != Method::POST {
            let mut answer = call.refuse(Status::invalid_argument("the HTTP method must be POST"));
            *answer.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            let post = HeaderValue::from_static("POST");
            answer.headers_mut().insert(ALLOW, post);
            return Box::pin(ready(Ok(answer)));
        }
        if !is_grpc(request.headers().get(CONTENT_TYPE)) {
            // A browser sends other types to any server without asking first. The status is what
            // the specification of gRPC over HTTP/2 asks for.
            let mut answer = call.refuse(Status::invalid_argument(
                "content-type: must be application/grpc",
            ));
            *answer.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Box::pin(ready(Ok(answer)));
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
                call.permit = self.permit(path, account.owner)?;
                Ok((account, packed))
            });
        let admitted = admitted.map_err(|error| {
            call.record.failed(&error);
            error.status()
        });
        let (account, packed) = match admitted.and_then(|admitted| timeout.map(|_| admitted)) {
            Ok(admitted) => admitted,
            Err(status) => return Box::pin(ready(Ok(call.refuse(status)))),
        };
        let (termination_status, record, drain) = (
            call.termination_status.clone(),
            call.record.clone(),
            self.drain.clone(),
        );
        request.extensions_mut().insert(CallContext {
            deadline,
            termination_status,
            record,
            account,
            drain,
        });
        if self.pack_above.is_some() && message::accepts_gzip(request.headers()) {
            call.pack_above = self.pack_above;
        }
        let rules = self.rules(request.uri().path(), packed);
        let request = request.map(|body| Body::new(Messages::new(body, rules)));
        Box::pin(call.answer(Arc::clone(&self.routes), request))
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

    /// A permit for one more call.
    fn permit(&self, path: &str, owner: Owner) -> Result<Option<Permit>, Error> {
        let permit = match path {
            path if is_asking_health(path) => return Ok(None),
            // Nobody needs a token for them, so nobody's name is known.
            path if is_infra(path) => self.infra_shares.take(self.peer.account().owner, 1),
            _ => self.call_shares.take(owner, 1),
        };
        Ok(permit.map(Some)?)
    }
}

/// All that is held for as long as the call lasts. Its drop is the end of the call.
struct Call {
    record: telemetry::Call,
    /// When time cuts it, and how: its deadline or its age, whichever comes first.
    limit: Option<(Instant, Termination)>,
    end: CancellationToken,
    /// Ready when the call is cut.
    is_cut: Pin<Box<dyn Future<Output = Termination> + Send>>,
    /// Whom that will wake.
    noted: RegisteredWaker,
    termination_status: TerminationStatus,
    /// How it ended, once that is known.
    code: Option<Code>,
    open: watch::Sender<usize>,
    /// Its part of all calls.
    permit: Option<Permit>,
    /// Messages of its answer with more bytes are packed.
    pack_above: Option<usize>,
}

impl Call {
    fn begin(
        calls: &Calls,
        record: telemetry::Call,
        path: &str,
        deadline: Option<Instant>,
    ) -> Self {
        calls.open.send_if_modified(|open| {
            *open += 1;
            *open == 1
        });
        let end = calls.end.clone();
        let age = calls
            .max_age
            .filter(|_| !is_infra(path))
            .map(|age| (Instant::now() + jittered(age), Termination::Closing));
        let limit = deadline
            .map(|deadline| (deadline, Termination::Deadline))
            .into_iter()
            .chain(age)
            .min_by_key(|(at, _)| *at);
        let is_cut = {
            let end = end.clone();
            async move {
                select! {
                    () = end.cancelled() => Termination::Closing,
                    cut = passed(limit) => cut,
                }
            }
        };
        Self {
            record,
            limit,
            end,
            is_cut: Box::pin(is_cut),
            noted: RegisteredWaker::default(),
            termination_status: TerminationStatus::default(),
            code: None,
            open: calls.open.clone(),
            permit: None,
            pack_above: None,
        }
    }

    async fn answer(
        self,
        routes: Arc<Routes>,
        request: Request<Body>,
    ) -> Result<Response<CallBody>, Infallible> {
        // A call on a connection that has ended must not reach a handler, which may write.
        if let Some(cut) = self.cut() {
            let status = self.termination_status.end(cut);
            return Ok(self.refuse(status));
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
        match answered {
            Ok(Ok(response)) => {
                let (mut head, body) = response.into_parts();
                if body.is_end_stream() {
                    call.code = Some(code(&head.headers));
                    return Ok(Response::from_parts(head, CallBody::default()));
                }
                if call.pack_above.is_some() {
                    let gzip = HeaderValue::from_static("gzip");
                    head.headers.insert("grpc-encoding", gzip);
                }
                Ok(Response::from_parts(head, CallBody::new(call, body)))
            }
            Ok(Err(never)) => match never {},
            Err(status) => Ok(call.refuse(status)),
        }
    }

    /// What is polled, unless the call is cut, which goes first: a handler that always has more to
    /// say is cut, too. Asking whether it is due costs less than waiting for it. The status says
    /// why it is not polled any more.
    fn poll_unless_cut<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<Result<T, Status>> {
        let termination = match self.cut() {
            Some(cut) => cut,
            None => match caught(|| poll(cx)) {
                Some(Poll::Ready(polled)) => return Poll::Ready(Ok(polled)),
                Some(Poll::Pending) if self.noted.is(cx) => return Poll::Pending,
                Some(Poll::Pending) => ready!(self.noted.poll(self.is_cut.as_mut(), cx)),
                None => Termination::Panic,
            },
        };
        Poll::Ready(Err(self.termination_status.end(termination)))
    }

    /// Why it is to be cut, if it is.
    fn cut(&self) -> Option<Termination> {
        let passed = self
            .limit
            .filter(|(at, _)| *at <= Instant::now())
            .map(|(_, cut)| cut);
        passed.or_else(|| self.end.is_cancelled().then_some(Termination::Closing))
    }

    /// The call is over before there was a response head.
    fn refuse(mut self, status: Status) -> Response<CallBody> {
        self.code = Some(status.code());
        status.into_http()
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // Without a code, neither a handler's status nor a cut reached the caller: it left, or did
        // not read until the connection was cut. Nobody hears that any more but the handler's side,
        // which is dropped after this.
        let code = self.code.unwrap_or_else(|| {
            let termination = self.cut().unwrap_or(Termination::Disconnect);
            drop(self.termination_status.end(termination));
            termination.status().code()
        });
        self.record.ended(code);
        self.open.send_if_modified(|open| {
            *open -= 1;
            *open == 0
        });
    }
}

/// The body of a call's answer. Empty once the call is over.
#[derive(Default)]
pub(super) struct CallBody(Option<Streaming>);

struct Streaming {
    call: Call,
    /// The handler's side. Shared, because a body is not polled while its caller reads nothing, but
    /// a stream has to go at the deadline or its age.
    handler: Arc<Mutex<Option<Body>>>,
    /// Drops the handler's side then. An answer that is no stream is there already, and holds
    /// nothing of the upstream's.
    _reaper: Option<AbortOnDropHandle<()>>,
}

impl Streaming {
    fn poll_handler(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let handler = &self.handler;
        let polled = self
            .call
            .poll_unless_cut(cx, |cx| match lock(handler).as_mut() {
                Some(body) => Pin::new(body).poll_frame(cx).map(Some),
                // The reaper's clock was the faster one.
                None => Poll::Ready(None),
            });
        Poll::Ready(match ready!(polled) {
            Ok(Some(polled)) => polled,
            Ok(None) => {
                let cut = self
                    .call
                    .limit
                    .map_or(Termination::Deadline, |(_, cut)| cut);
                Some(Err(self.call.termination_status.end(cut)))
            }
            Err(status) => Some(Err(status)),
        })
    }
}

impl CallBody {
    fn new(call: Call, body: Body) -> Self {
        let handler = Arc::new(Mutex::new(Some(body)));
        let reaper = call.limit.filter(|_| call.record.streams()).map(|limit| {
            let (handler, termination_status) =
                (Arc::clone(&handler), call.termination_status.clone());
            AbortOnDropHandle::new(tokio::spawn(async move {
                // Said first, so that the handler's side learns why it goes.
                drop(termination_status.end(passed(Some(limit)).await));
                let body = lock(&handler).take();
                drop(body);
            }))
        });
        Self(Some(Streaming {
            call,
            handler,
            _reaper: reaper,
        }))
    }

    fn close(&mut self, code: Code) {
        if let Some(mut streaming) = self.0.take() {
            streaming.call.code = Some(code);
        }
    }

    fn close_with(&mut self, status: Status) -> Frame<Bytes> {
        self.close(status.code());
        Frame::trailers(trailers(status))
    }
}

impl http_body::Body for CallBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(streaming) = &mut self.0 else {
            return Poll::Ready(None);
        };
        Poll::Ready(match ready!(streaming.poll_handler(cx)) {
            Some(Ok(frame)) if streaming.call.pack_above.is_some() && frame.is_data() => {
                let above = streaming.call.pack_above.unwrap_or(usize::MAX);
                let data = frame.into_data().unwrap_or_default();
                Some(Ok(match message::pack(data, above) {
                    Ok(packed) => Frame::data(packed),
                    Err(status) => self.close_with(status),
                }))
            }
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    let code = code(trailers);
                    self.close(code);
                }
                Some(Ok(frame))
            }
            Some(Err(status)) => Some(Ok(self.close_with(status))),
            None => {
                self.close(Code::Unknown);
                None
            }
        })
    }

    /// Only what is over is at its end: the trailers are always still to come.
    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    /// Nothing is promised, as the call may be cut at any time.
    fn size_hint(&self) -> SizeHint {
        if self.0.is_none() {
            SizeHint::with_exact(0)
        } else {
            SizeHint::default()
        }
    }
}

/// The largest message of health and reflection, in bytes: they are open to all.
const INFRA_MESSAGE: usize = 4 << 10;

/// A request's metadata as HTTP/2 counts it: name, value and 32 more for each.
fn metadata_size<B>(request: &Request<B>) -> usize {
    let headers = request.headers().iter();
    let fields = headers.map(|(name, value)| name.as_str().len() + value.len() + 32);
    let path = request.uri().path_and_query();
    fields.sum::<usize>() + path.map_or(0, |path| path.as_str().len())
}

fn lock(handler: &Mutex<Option<Body>>) -> MutexGuard<'_, Option<Body>> {
    handler.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn passed(limit: Option<(Instant, Termination)>) -> Termination {
    let Some((at, cut)) = limit else {
        return std::future::pending().await;
    };
    // At once, if it has passed: a sleep takes its millisecond even so.
    if at > Instant::now() {
        tokio::time::sleep_until(at).await;
    }
    cut
}

/// A panic in a handler is one call's INTERNAL. Let through, the caller would see a reset stream,
/// which reads as "cancelled".
fn caught<T>(poll: impl FnOnce() -> Poll<T>) -> Option<Poll<T>> {
    // What was being polled is dropped by its owner, never polled again: nothing sees a
    // half-changed state.
    panic::catch_unwind(AssertUnwindSafe(poll))
        .inspect_err(|panic| {
            tracing::error!(panic = message(&**panic), "a handler panicked");
        })
        .ok()
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("")
}

fn code(headers: &HeaderMap) -> Code {
    headers
        .get(Status::GRPC_STATUS)
        .map_or(Code::Unknown, |code| Code::from_bytes(code.as_bytes()))
}

fn trailers(status: Status) -> HeaderMap {
    let mut trailers = status.into_http::<()>().into_parts().0.headers;
    trailers.remove(CONTENT_TYPE);
    trailers
}
