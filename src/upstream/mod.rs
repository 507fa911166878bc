//! The REST side: the only module that knows HTTP as a client.
//!
//! | file | idea |
//! |---|---|
//! | `calls.rs` | one method per REST endpoint, generated from the contract |
//! | `endpoints.rs` | from an RPC's request to a REST request; the calls written by hand |
//! | `target.rs` | paths and queries: nothing that a caller sends can change which endpoint is called |
//! | `transport.rs` | the HTTP clients: key, TLS, renewal |
//! | `document.rs` | a small document by its URL, such as an issuer's keys |
//! | `answer.rs` | from an HTTP answer to a message or an [`Error`] |
//! | `error_body.rs` | what an error's body says, in any of its shapes |
//! | `delay.rs` | how long an upstream asks to wait |
//! | `failure.rs` | why there is no answer, and whether the request was sent |
//! | `retry.rs` | the one retry loop |
//! | `marks.rs` | the gateway's own pairs in metadata: nobody else writes or sees them |
//! | `create_mark.rs` | the mark of a create: which `request_id` made a resource |
//! | `creates.rs` | creates that are marked, and how what they made is found again |
//! | `reconcile.rs` | writes of which nobody knows whether they took effect: the run tells |
//! | `isolation.rs` | whose a thread is, and who may use it |
//! | `admission.rs` | how many requests there are at a time, and whose turn it is |
//! | `stream.rs` | event streams: a client of their own, frames as they come |
//! | `sse.rs` | the framing of server-sent events, a pure parser |
//!
//! Must hold: nothing but `retry.rs` sends a request twice. Redirects are not followed (a 307
//! replays bodies, and a named key header would cross hosts), the client's own resending is off (it
//! repeats POSTs), and no proxy is taken from the environment.

mod admission;
mod answer;
mod calls;
mod create_mark;
mod creates;
mod delay;
mod document;
mod endpoints;
mod error_body;
mod failure;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod isolation;
mod marks;
mod reconcile;
mod retry;
pub mod sse;
mod stream;
mod target;
mod transport;

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::Instant;
use url::Url;

pub use admission::RequestLimits;
use answer::Reading;
pub use answer::{Answer, SHOWN_HEADERS, error_event};
pub use create_mark::CreateMark;
pub use creates::{Findable, MarkedCreate};
pub use document::fetch_document;
use isolation::{Allowed, Isolation};
pub use isolation::{CallerMark, IsolationRules, MarkKey, Unmarked};
pub use retry::RetryLimits;
pub use stream::{EventStream, StreamBroken, UpstreamReply};
use target::Target;
use transport::Transport;
pub use transport::{RENEWAL, UpstreamFiles};

use crate::{
    error::{Error, Idempotency},
    json,
    reloadable::Reloadable,
    shares::{Credential, HeldBytes, Owner},
    telemetry::{self, Telemetry, UpstreamRequest},
};

/// The upstream and how to talk to it.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// The URL before `/threads`, with any path prefix and query.
    pub base: Url,
    /// How a credential is sent.
    pub auth: AuthStyle,
    /// The gateway's own key. Without one the caller's credential is passed on.
    pub key: Option<SecretString>,
    /// Headers of every request.
    pub headers: HeaderMap,
    /// How long connecting may take, TLS included.
    pub connect_timeout: Duration,
    /// How long an answer may take, from sending the request to the last byte.
    pub answer_timeout: Duration,
    /// The largest answer, in bytes.
    pub max_answer_bytes: usize,
    /// The largest event of a stream, in bytes.
    pub max_event_bytes: usize,
    /// Which HTTP is spoken.
    pub http: HttpVersion,
    /// How long a connection with requests on it may be silent before it is asked for a sign of
    /// life: a ping over HTTP/2, TCP's keepalive below HTTP/1.1. `None`: never.
    pub ping_interval: Option<Duration>,
    /// How long a sign of life may take; without it the connection is over.
    pub ping_timeout: Duration,
    /// How many requests there may be at a time.
    pub requests: RequestLimits,
    /// When failed requests are made again.
    pub retry: RetryLimits,
    /// Files that may change: a key in place of [`Self::key`], TLS roots, a client certificate.
    pub files: UpstreamFiles,
    /// How often they are looked at for changes.
    pub reload_interval: Duration,
    /// The age at which connections are not used for new requests any more.
    pub renewal: Duration,
}

impl Upstream {
    /// Whether the gateway has a key of its own.
    pub fn has_own_key(&self) -> bool {
        self.key.is_some() || self.files.key.is_some()
    }
}

/// Which HTTP is spoken to the upstream. Event streams use HTTP/1.1 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpVersion {
    /// What the TLS handshake agrees on. Without TLS, HTTP/1.1.
    Negotiated,
    /// HTTP/2, also without TLS.
    Http2,
}

/// How a credential is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthStyle {
    /// `authorization: Bearer KEY`.
    Bearer,
    /// The key alone, in a header of this name, such as Azure's `api-key`.
    Header(HeaderName),
}

impl AuthStyle {
    /// The header that has the credential.
    pub fn header(&self) -> HeaderName {
        match self {
            Self::Bearer => header::AUTHORIZATION,
            Self::Header(name) => name.clone(),
        }
    }

    fn value(&self, key: &SecretString) -> Result<HeaderValue, header::InvalidHeaderValue> {
        let mut value = match self {
            Self::Bearer => HeaderValue::try_from(format!("Bearer {}", key.expose_secret())),
            Self::Header(_) => HeaderValue::try_from(key.expose_secret()),
        }?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// What a caller adds to the requests made for it.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// Headers to pass on: the allowed ones of its metadata, with its credential if it is to be
    /// passed on.
    pub headers: HeaderMap,
    /// When its call has to be over. Nothing is waited for that ends later.
    pub deadline: Option<Instant>,
    /// It makes failed calls again by itself: the gateway does not.
    pub retries: bool,
    /// The call that requests are made for.
    pub call: telemetry::Call,
    /// Who holds what is held for it.
    pub owner: Owner,
    /// The bytes that are.
    pub held: HeldBytes,
    /// Its own credential, whose share depends on what the upstream says to it.
    pub credential: Option<Credential>,
    /// Its name, if callers are told apart.
    pub name: Option<Arc<str>>,
    /// What marks what it makes, if callers are isolated from each other.
    pub mark: Option<CallerMark>,
}

/// The header that names one write, for services that know it.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Forwarded headers that say nothing about what a caller may see.
const ANONYMOUS_HEADERS: [&str; 4] = [
    IDEMPOTENCY_KEY,
    "traceparent",
    "tracestate",
    "x-client-request-id",
];

impl Caller {
    /// The upstream has answered a request: what that says of the caller's credential.
    pub(super) fn answered(&self, error: Option<&Error>) {
        match (&self.credential, error) {
            (Some(credential), None) => credential.accept(),
            (Some(credential), Some(error)) if error.is_credential_rejected() => {
                credential.reject();
            }
            _ => {}
        }
    }

    /// The headers that may change what the upstream shows, in one order, and the caller's mark:
    /// callers with the same ones may share an answer.
    pub fn identity(&self) -> Identity {
        let relevant = self
            .headers
            .iter()
            .filter(|(name, _)| !ANONYMOUS_HEADERS.contains(&name.as_str()));
        let mut identity: Vec<_> = relevant
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        identity
            .sort_by(|a, b| (a.0.as_str(), a.1.as_bytes()).cmp(&(b.0.as_str(), b.1.as_bytes())));
        Identity(identity, self.mark)
    }
}

/// Who a caller is to the upstream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity(Vec<(HeaderName, HeaderValue)>, Option<CallerMark>);

impl Identity {
    /// The headers that decide what the caller may see, in a fixed order.
    pub fn headers(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.0.iter().map(|(name, value)| (name, value))
    }

    /// A caller with this identity, no deadline, and a patience of its own.
    pub fn caller(&self) -> Caller {
        Caller {
            headers: self.0.iter().cloned().collect(),
            deadline: None,
            retries: true,
            call: telemetry::Call::default(),
            owner: Owner::default(),
            held: HeldBytes::default(),
            credential: None,
            name: None,
            mark: self.1,
        }
    }
}

/// A client of one upstream. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    telemetry: Telemetry,
    transport: Reloadable<Transport>,
    admission: admission::Admission,
    retry: Arc<retry::Retry>,
    base: target::Base,
    own_key: bool,
    /// Which callers may use what, if they are isolated from each other.
    isolation: Option<Arc<Isolation>>,
    answer_timeout: Duration,
    max_answer_bytes: usize,
    max_event_bytes: usize,
}

impl Client {
    /// A client of `upstream`, whose requests `telemetry` sees. Connects when first used.
    ///
    /// Fails if a file cannot be read or understood, the key cannot stand in a header, or there are
    /// no TLS roots. Has to be called in a runtime.
    pub fn new(upstream: &Upstream, telemetry: &Telemetry) -> Result<Self, String> {
        // reqwest takes whatever provider the process has. A second installation changes nothing
        // and is no error.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Self {
            telemetry: telemetry.clone(),
            transport: Transport::watch(upstream, telemetry)?,
            admission: admission::Admission::new(
                upstream.requests.clone(),
                telemetry.metrics().queued.clone(),
            ),
            retry: Arc::new(retry::Retry::new(upstream.retry.clone())),
            base: target::Base::new(&upstream.base),
            own_key: upstream.has_own_key(),
            isolation: None,
            answer_timeout: upstream.answer_timeout,
            max_answer_bytes: upstream.max_answer_bytes,
            max_event_bytes: upstream.max_event_bytes,
        })
    }

    /// What sees this client's requests.
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// Sends a request and reads its answer.
    async fn send<M: answer::Answerable>(
        &self,
        caller: &Caller,
        request: Request,
    ) -> Result<Answer<M>, Error> {
        let request = self.allow(caller, request).await?;
        self.send_allowed(caller, &request).await
    }

    async fn send_allowed<M: answer::Answerable>(
        &self,
        caller: &Caller,
        request: &Allowed,
    ) -> Result<Answer<M>, Error> {
        self.retry
            .run(caller, |attempt| self.send_once(caller, request, attempt))
            .await
    }

    async fn send_once<M: answer::Answerable>(
        &self,
        caller: &Caller,
        request: &Allowed,
        attempt: u32,
    ) -> Result<Answer<M>, Error> {
        let idempotency = request.idempotency;
        let mut place = self.admission.enter(caller.owner).await?;
        place.sends(idempotency);
        let connection_group = place.connection_group;
        let mut upstream_request = self.note(caller, request, attempt);
        let mut id = None;
        let answer = {
            // Pinned, and not moved into the timeout: it is large. So would the request be, were it
            // held here while its answer is awaited.
            let sent = Instant::now();
            let asking = pin!(async {
                let sending = {
                    let mut http = self.request(caller, request);
                    upstream_request.inject(http.headers_mut());
                    self.transport.get().unary[connection_group].execute(http)
                };
                let mut response = sending
                    .await
                    .map_err(|error| failure::lost(&error, idempotency))?;
                upstream_request.answered(response.status());
                id = answer::request_id(response.headers()).map(str::to_owned);
                let reading = self.reading(caller, request, sent);
                answer::read::<M>(&mut response, Bytes::new(), &reading).await
            });
            tokio::time::timeout(self.answer_timeout, asking).await
        };
        place.over();
        let answer =
            answer.unwrap_or_else(|_| Err(failure::timed_out(self.answer_timeout, idempotency)));
        upstream_request.ended(&answer);
        if let Some(run) = answer
            .as_ref()
            .ok()
            .and_then(|answer: &Answer<M>| answer.message.run())
        {
            self.telemetry.saw(run);
            caller.call.saw(run);
        }
        caller.call.answered(id.as_deref());
        caller.answered(answer.as_ref().err());
        if let Some(isolation) = &self.isolation {
            isolation.answered(request, answer.as_ref().err());
        }
        answer.map_err(|error| error.of_request(id))
    }

    /// How the answer to a request that was sent then is read.
    fn reading<'a>(&self, caller: &'a Caller, request: &'a Allowed, sent: Instant) -> Reading<'a> {
        let until = sent + self.answer_timeout;
        Reading {
            target: &request.target,
            idempotency: request.idempotency,
            own_key: self.own_key,
            shows_marks: request.shows_marks,
            limit: self.max_answer_bytes,
            held: &caller.held,
            until: caller
                .deadline
                .map_or(until, |deadline| deadline.min(until)),
        }
    }

    /// Notes an attempt at a request, in its call and in telemetry.
    fn note(&self, caller: &Caller, request: &Request, attempt: u32) -> UpstreamRequest {
        let target = &request.target;
        caller
            .call
            .about(target.id("thread_id"), target.id("run_id"));
        let (method, route) = (&request.method, target.route);
        self.telemetry
            .upstream_request(&caller.call, method, route, attempt)
    }

    fn request(&self, caller: &Caller, request: &Request) -> reqwest::Request {
        let mut http = reqwest::Request::new(
            request.method.clone(),
            self.base.url(&request.target.path, &request.query),
        );
        http.headers_mut().clone_from(&caller.headers);
        if let Some(key) = &request.idempotency_key {
            http.headers_mut()
                .entry(IDEMPOTENCY_KEY)
                .or_insert_with(|| key.clone());
        }
        if let Some(body) = request.body.clone() {
            http.headers_mut().insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/json"),
            );
            *http.body_mut() = Some(body.into());
        } else if http.method() == Method::POST {
            // Left out otherwise, and some servers answer 411 to a POST that does not say how long
            // it is.
            http.headers_mut()
                .insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        http
    }
}

/// One request to the upstream.
struct Request {
    method: Method,
    target: Target,
    query: target::Query,
    body: Option<Bytes>,
    /// The field of the RPC's request that the body is.
    body_field: &'static str,
    idempotency: Idempotency,
    /// The key of all attempts, unless the caller gives one. It is a courtesy to services that know
    /// such keys, and no ground for a retry.
    idempotency_key: Option<HeaderValue>,
    /// Its answer is not for a caller: it shows marks.
    shows_marks: bool,
}

impl Request {
    /// A request to `route`, whose ids in braces are those of the same names in `ids`.
    fn new(
        method: Method,
        route: &'static str,
        ids: &[(&str, &str)],
        idempotency: Idempotency,
    ) -> Result<Self, Error> {
        Ok(Self {
            method,
            target: target::target(route, ids)?,
            query: target::Query::default(),
            body: None,
            body_field: "",
            idempotency,
            idempotency_key: None,
            shows_marks: false,
        })
    }

    /// For a request whose answer no caller sees.
    fn showing_marks(mut self) -> Self {
        self.shows_marks = true;
        self
    }

    /// Reads what this request modifies.
    fn read_before(&self) -> Self {
        Self {
            method: Method::GET,
            target: self.target.clone(),
            query: target::Query::default(),
            body: None,
            body_field: "",
            idempotency: Idempotency::Idempotent,
            idempotency_key: None,
            shows_marks: false,
        }
    }

    /// Whether its body has a member of this name.
    fn names(&self, member: &str) -> bool {
        let body = self.body.as_deref().unwrap_or_default();
        json::member(body, member).is_some()
    }

    /// For a request that makes something new.
    fn with_idempotency_key(mut self) -> Self {
        self.idempotency_key = retry::idempotency_key();
        self
    }

    fn body(mut self, field: &'static str, body: Vec<u8>) -> Self {
        self.body_field = field;
        self.body = Some(body.into());
        self
    }

    /// The same request, asking for a stream. `stream` is the gateway's: encoding has refused
    /// bodies that name it.
    fn streamed(mut self) -> Self {
        self.body = self.body.map(|body| {
            let mut body = Vec::from(body);
            body.pop();
            body.extend_from_slice(if body.len() > 1 {
                b",\"stream\":true}"
            } else {
                b"\"stream\":true}"
            });
            body.into()
        });
        self
    }

    fn query(mut self, query: target::Query) -> Self {
        self.query = query;
        self
    }
}
