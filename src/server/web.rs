//! gRPC-Web and CORS: calls from pages in browsers. Off unless origins are named.
//!
//! A page cannot speak gRPC: it sees no trailers, and without TLS no HTTP/2. gRPC-Web puts the
//! trailers into the body, as its last frame. That is done outside of a [`Calls`]' answer, so that
//! a call that is cut says why here, too.
//!
//! Must hold: a page whose origin is not named reaches no handler and is told nothing, not even
//! where its browser would not have asked first (a name that was made to point here;
//! `application/grpc` over HTTP/2 alone is served whatever its origin, as browsers ask first and
//! other callers may name one); what is neither gRPC, gRPC-Web nor a preflight is refused, since a
//! page may send `text/plain` unasked; preflights carry no credentials and need none; no more is
//! buffered than a piece of a body; HTTP/1.1 has no pings, so that the rest of a request that has
//! begun is waited for with a limit.
//!
//! The framing is tonic-web's. What it gets wrong is made up for here: it knows a text answer only
//! by `accept`, and takes a caller's broken body for a failure of the server's. CORS is not
//! tower-http's, which sends most of its headers to every origin and takes every OPTIONS for a
//! preflight.

use std::{
    convert::Infallible,
    future::ready,
    pin::{Pin, pin},
    str::FromStr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{self, HeaderName},
    uri::Authority,
};
use http_body::Frame;
use hyper::{body::Incoming, service::Service as _};
use tokio::time::{Sleep, sleep};
use tonic::{Status, body::Body};
use tonic_web::GrpcWebLayer;
use tower::{Layer as _, Service as _, service_fn};
use url::Url;

use super::{call::Calls, routes::is_grpc};

/// What a request needs beside the metadata that the gateway passes on.
const REQUEST_HEADERS: [&str; 5] = [
    "authorization",
    "content-type",
    "grpc-timeout",
    "x-grpc-web",
    "x-user-agent",
];

/// Where an answer without a body has its status, beside the headers of the upstream's that are
/// shown.
const STATUS_HEADERS: [&str; 4] = [
    "grpc-message",
    "grpc-retry-pushback-ms",
    "grpc-status",
    "grpc-status-details-bin",
];

/// How long a browser remembers the answer to a preflight: as long as any of them does.
const MAX_AGE: HeaderValue = HeaderValue::from_static("7200");

/// The content types of gRPC-Web, as tonic-web knows them.
const WEB_TYPES: [&str; 4] = [
    "application/grpc-web",
    "application/grpc-web+proto",
    "application/grpc-web-text",
    "application/grpc-web-text+proto",
];

/// Where a page comes from, as browsers write it: `https://app.example`, `http://localhost:5173`.
/// `*` is any page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(HeaderValue);

impl Origin {
    /// Whether any page is meant.
    pub fn is_any(&self) -> bool {
        self.0 == "*"
    }
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Browsers write an origin in one way only, and it is compared byte by byte: another
        // spelling, or a pattern, would never match.
        let is_web = |url: &Url| ["http", "https"].contains(&url.scheme()) && !text.contains('*');
        let origin = Url::parse(text).ok().filter(is_web).map(|url| url.origin());
        match origin.map(|origin| origin.ascii_serialization()) {
            Some(written) if written != text => {
                Err(format!("not how browsers write an origin: {written}"))
            }
            None if text != "*" => Err(
                "not an origin, such as https://app.example or http://localhost:5173".to_owned(),
            ),
            _ => HeaderValue::from_str(text)
                .map(Self)
                .map_err(|_| "not an origin".to_owned()),
        }
    }
}

/// Which pages may call, and what their browsers are told.
#[derive(Debug, Clone)]
pub struct Web(Arc<WebSettings>);

#[derive(Debug)]
struct WebSettings {
    origins: Vec<Origin>,
    request_headers: HeaderValue,
    answer_headers: HeaderValue,
}

impl Web {
    /// Admits pages of `origins`; `None` if there are none. They may send the metadata `forwarded`
    /// and read the headers `shown`.
    ///
    /// # Panics
    ///
    /// If `shown` has what cannot be the name of a header.
    pub fn new(origins: Vec<Origin>, forwarded: &[HeaderName], shown: &[&str]) -> Option<Self> {
        if origins.is_empty() {
            return None;
        }
        let mut request_headers: Vec<_> = REQUEST_HEADERS
            .into_iter()
            .chain(forwarded.iter().map(HeaderName::as_str))
            .collect();
        request_headers.sort_unstable();
        request_headers.dedup();
        let answer_headers: Vec<_> = STATUS_HEADERS.iter().chain(shown).copied().collect();
        let list = |names: &[&str]| {
            HeaderValue::from_str(&names.join(", ")).expect("names of headers are a header's value")
        };
        Some(Self(Arc::new(WebSettings {
            origins,
            request_headers: list(&request_headers),
            answer_headers: list(&answer_headers),
        })))
    }

    /// The same calls, for browsers too. `patience` is how long the rest of a request is waited
    /// for.
    pub(super) fn calls(&self, calls: Calls, patience: Duration) -> WebCalls {
        WebCalls {
            web: self.clone(),
            calls,
            patience,
        }
    }

    fn may_call(&self, origin: &HeaderValue) -> bool {
        self.0
            .origins
            .iter()
            .any(|named| named.is_any() || named.0 == origin)
    }

    /// Lets the page read the answer.
    fn show(&self, origin: HeaderValue, headers: &mut HeaderMap) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            self.0.answer_headers.clone(),
        );
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
    }

    fn preflight(&self) -> Response<Body> {
        let mut answer = empty(StatusCode::NO_CONTENT);
        let headers = answer.headers_mut();
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_METHODS,
            HeaderValue::from_static("POST"),
        );
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            self.0.request_headers.clone(),
        );
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        answer
    }
}

/// The calls of one connection that may be a browser's.
pub(super) struct WebCalls {
    web: Web,
    calls: Calls,
    patience: Duration,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl hyper::service::Service<Request<Incoming>> for WebCalls {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        // Callers that are no browsers send no origin: whether they may call is not decided here.
        let origin = request.headers().get(header::ORIGIN).cloned();
        let foreign = origin
            .as_ref()
            .is_some_and(|origin| !self.web.may_call(origin));
        let answer: Answer = match Kind::of(&request) {
            Kind::Grpc => {
                let answer = self.calls.call(request);
                return Box::pin(async { answer.await.map(|answer| answer.map(Body::new)) });
            }
            Kind::NoHost => return Box::pin(ready(Ok(empty(StatusCode::BAD_REQUEST)))),
            Kind::NoPost => {
                let mut answer = empty(StatusCode::METHOD_NOT_ALLOWED);
                let post = HeaderValue::from_static("POST");
                answer.headers_mut().insert(header::ALLOW, post);
                return Box::pin(ready(Ok(answer)));
            }
            _ if foreign => {
                tracing::debug!("a page whose origin is not named");
                return Box::pin(ready(Ok(empty(StatusCode::FORBIDDEN))));
            }
            Kind::Web => self.translated(request),
            Kind::Preflight => Box::pin(ready(Ok(self.web.preflight()))),
            Kind::Other => Box::pin(ready(Ok(empty(StatusCode::UNSUPPORTED_MEDIA_TYPE)))),
        };
        let web = self.web.clone();
        Box::pin(async move {
            let mut answer = answer.await?;
            if let Some(origin) = origin {
                web.show(origin, answer.headers_mut());
            }
            Ok(answer)
        })
    }
}

impl WebCalls {
    /// A call of gRPC-Web, as a call of gRPC.
    fn translated(&self, mut request: Request<Incoming>) -> Answer {
        let headers = request.headers_mut();
        if let Some(sent) = web_type(headers.get(header::CONTENT_TYPE)) {
            let accepted = web_type(headers.get(header::ACCEPT)).unwrap_or(sent);
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(sent));
            headers.insert(header::ACCEPT, HeaderValue::from_static(accepted));
        }
        let (calls, patience) = (self.calls.clone(), self.patience);
        let call = move |request: Request<Body>| {
            calls.call(request.map(|body| Received {
                body,
                patience,
                waits: None,
            }))
        };
        Box::pin(GrpcWebLayer::new().layer(service_fn(call)).call(request))
    }
}

/// What a request on a connection for browsers is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Grpc,
    Web,
    Preflight,
    Other,
    /// Another method than POST.
    NoPost,
    /// HTTP/1.1 that does not say for which host it is.
    NoHost,
}

impl Kind {
    fn of<B>(request: &Request<B>) -> Self {
        let headers = request.headers();
        let content_type = headers.get(header::CONTENT_TYPE);
        if !names_host(request) {
            return Self::NoHost;
        }
        match *request.method() {
            Method::POST if web_type(content_type).is_some() => Self::Web,
            // HTTP/1.1 would lose the trailers.
            Method::POST if request.version() == Version::HTTP_2 && is_grpc(content_type) => {
                Self::Grpc
            }
            Method::OPTIONS if headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) => {
                Self::Preflight
            }
            Method::POST => Self::Other,
            _ => Self::NoPost,
        }
    }
}

/// The first type of gRPC-Web in a header, as tonic-web writes it: in lower case, and without
/// parameters and white space.
fn web_type(header: Option<&HeaderValue>) -> Option<&'static str> {
    let mut listed = header?.as_bytes().split(|byte| *byte == b',');
    listed.find_map(|listed| {
        let essence = listed.split(|byte| *byte == b';').next()?.trim_ascii();
        let mut types = WEB_TYPES.into_iter();
        types.find(|web| essence.eq_ignore_ascii_case(web.as_bytes()))
    })
}

/// Whether a request names its one host, as HTTP/1.1 has to (RFC 9112, 3.2).
fn names_host<B>(request: &Request<B>) -> bool {
    if request.version() == Version::HTTP_2 {
        return true;
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => {
            Authority::try_from(host.as_bytes()).is_ok_and(|host| !host.as_str().contains('@'))
        }
        (None, _) => request.version() < Version::HTTP_11,
        (Some(_), Some(_)) => false,
    }
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = status;
    answer
}

/// A request's body. Its end is waited for, but not for ever: without pings nothing else tells that
/// the caller is gone.
struct Received {
    body: Body,
    patience: Duration,
    waits: Option<Pin<Box<Sleep>>>,
}

impl http_body::Body for Received {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = pin!(&mut self.body).poll_frame(cx) {
            self.waits = None;
            // It broke off, or its base64 is none.
            let broken = |_| Status::invalid_argument("the request's body is broken");
            return Poll::Ready(frame.map(|frame| frame.map_err(broken)));
        }
        let patience = self.patience;
        let waits = self.waits.get_or_insert_with(|| Box::pin(sleep(patience)));
        waits.as_mut().poll(cx).map(|()| {
            Some(Err(Status::deadline_exceeded(
                "the rest of the request did not come",
            )))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_what_browsers_write_or_any() {
        for origin in [
            "https://app.example",
            "http://localhost:5173",
            "http://127.0.0.1",
            "http://[::1]:8080",
            "*",
        ] {
            assert_eq!(Origin::from_str(origin).expect(origin).0, origin);
        }
        let refused = [
            ("https://app.example/", "https://app.example"),
            ("https://App.example", "https://app.example"),
            ("https://app.example:443", "https://app.example"),
            ("https://app.example/page", "https://app.example"),
            ("https://user@app.example", "https://app.example"),
            ("https://\u{fc}.example", "https://xn--tda.example"),
            ("app.example", "such as"),
            ("localhost:5173", "such as"),
            ("https://*.app.example", "such as"),
            ("ftp://app.example", "such as"),
            ("file:///page", "such as"),
            ("null", "such as"),
            ("", "such as"),
        ];
        for (origin, advice) in refused {
            let line = Origin::from_str(origin).expect_err(origin);
            assert!(line.contains(advice), "{origin}: {line}");
        }
    }

    #[test]
    fn only_grpc_over_http2_and_grpc_web_are_calls() {
        let (http1, http2) = (Version::HTTP_11, Version::HTTP_2);
        let cases = [
            ("POST", http2, "application/grpc", Kind::Grpc),
            ("POST", http2, "application/grpc+proto", Kind::Grpc),
            ("POST", http1, "application/grpc", Kind::Other),
            ("POST", http1, "application/grpc-web", Kind::Web),
            ("POST", http1, "application/grpc-web+proto", Kind::Web),
            ("POST", http2, "application/grpc-web-text", Kind::Web),
            ("POST", http2, "application/grpc-web+json", Kind::Other),
            ("POST", http2, "text/plain", Kind::Other),
            ("POST", http2, "", Kind::Other),
            ("GET", http2, "application/grpc", Kind::NoPost),
            ("GET", http1, "application/grpc-web", Kind::NoPost),
            ("OPTIONS", http1, "", Kind::NoPost),
        ];
        for (method, version, content_type, kind) in cases {
            let request = Request::builder()
                .method(method)
                .version(version)
                .header("host", "gateway")
                .header("content-type", content_type)
                .body(());
            assert_eq!(
                Kind::of(&request.expect("a request")),
                kind,
                "{method} {version:?} {content_type}"
            );
        }
        let preflight = Request::options("/")
            .header("access-control-request-method", "POST")
            .header("host", "gateway")
            .body(())
            .expect("a request");
        assert_eq!(Kind::of(&preflight), Kind::Preflight);
    }
}
