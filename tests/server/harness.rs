//! A server whose handlers are the test itself, and a bare HTTP/2 client.
//!
//! A call to `/test.Script/…` becomes a [`Call`] in the test's hands: it says what is answered and
//! when, and sees when it is let go.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use runs_gateway::{
    server::{Access, Limits, Routes, Served, Web, routes, serve},
    telemetry::{Telemetry, log::Json},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Code, Status,
    body::Body,
    server::NamedService,
    transport::{Channel, Endpoint},
};
use tower::Service;
use tracing_subscriber::fmt::MakeWriter;

/// Waits for what has to happen soon; a test that waits in vain fails.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what)
        .await
        .expect("should have happened by now")
}

pub(crate) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A server with the scripted service.
pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    pub(crate) shutdown: CancellationToken,
    pub(crate) served: JoinHandle<()>,
    calls: mpsc::UnboundedReceiver<Call>,
}

impl Gateway {
    pub(crate) async fn start(limits: Limits) -> Self {
        Self::start_for(None, Access::default(), limits).await
    }

    /// The same for pages in browsers, and with callers told apart.
    pub(crate) async fn start_for(web: Option<Web>, access: Access, limits: Limits) -> Self {
        log();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, calls) = mpsc::unbounded_channel();
        let (routes, health) = routes(Routes::default().with(Script(sender)));
        let shutdown = CancellationToken::new();
        let (telemetry, detached) = (Telemetry::default(), TaskTracker::new());
        let served = Served {
            routes,
            health,
            access,
            tls: None,
            web,
            telemetry,
            detached,
        };
        let served = tokio::spawn(serve(listener, served, limits, shutdown.clone()));
        Self {
            address,
            shutdown,
            served,
            calls,
        }
    }

    /// The next call that reached its handler.
    pub(crate) async fn call(&mut self) -> Call {
        soon(self.calls.recv()).await.unwrap()
    }

    /// Whether calls have reached handlers and were not taken yet.
    pub(crate) fn has_calls(&self) -> bool {
        !self.calls.is_empty()
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.address, &h2::client::Builder::new()).await
    }

    pub(crate) async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address))
            .unwrap()
            .connect()
            .await
            .unwrap()
    }
}

/// A call as its handler has it.
pub(crate) struct Call {
    pub(crate) request: Request<Body>,
    pub(crate) answer: oneshot::Sender<Response<Body>>,
}

impl Call {
    pub(crate) fn answer(self, response: Response<Body>) {
        self.answer.send(response).unwrap();
    }

    /// Sends the head; the body is what is sent to the sender, whose `closed` is the end of
    /// interest in it.
    pub(crate) fn stream(self) -> mpsc::Sender<Frame<Bytes>> {
        let (sender, frames) = mpsc::channel(1);
        self.answer(Response::new(Body::new(StreamBody::new(
            ReceiverStream::new(frames).map(Ok::<_, Status>),
        ))));
        sender
    }
}

pub(crate) fn data(text: &'static str) -> Frame<Bytes> {
    Frame::data(Bytes::from_static(text.as_bytes()))
}

/// An answer without a body.
pub(crate) fn status(code: Code) -> Response<Body> {
    Status::new(code, "").into_http()
}

#[derive(Clone)]
struct Script(mpsc::UnboundedSender<Call>);

impl NamedService for Script {
    const NAME: &'static str = "test.Script";
}

impl Service<Request<Body>> for Script {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (answer, answered) = oneshot::channel();
        let panics = request.uri().path().ends_with("/Panic");
        self.0.send(Call { request, answer }).unwrap();
        Box::pin(async move {
            let response = answered.await.expect("the test answers");
            assert!(!panics, "a handler that panics");
            Ok(response)
        })
    }
}

/// One HTTP/2 connection.
pub(crate) struct Client {
    requests: SendRequest<Bytes>,
    /// Done when the connection is closed; `Ok` if that was not an error.
    pub(crate) closed: JoinHandle<Result<(), h2::Error>>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr, builder: &h2::client::Builder) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (requests, connection) = soon(builder.handshake(stream)).await.unwrap();
        Self {
            requests,
            closed: tokio::spawn(connection),
        }
    }

    /// Waits until the server takes no more calls on this connection.
    pub(crate) async fn goaway(&self) -> h2::Error {
        soon(async {
            loop {
                match self.requests.clone().ready().await {
                    Ok(_) => tokio::task::yield_now().await,
                    Err(goaway) => return goaway,
                }
            }
        })
        .await
    }

    /// Sends a call without a message.
    pub(crate) async fn call(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Pending, h2::Error> {
        let mut request = Request::post(format!("http://gateway{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(()).unwrap()).await
    }

    /// Begins a call whose message does not come.
    pub(crate) async fn begin(&mut self, path: &str) -> (Pending, h2::SendStream<Bytes>) {
        let request = Request::post(format!("http://gateway{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let mut requests = soon(self.requests.clone().ready()).await.unwrap();
        let request = request.body(()).unwrap();
        let (answer, body) = requests.send_request(request, false).unwrap();
        (Pending(answer), body)
    }

    /// Sends a request without a body.
    pub(crate) async fn send(&mut self, request: Request<()>) -> Result<Pending, h2::Error> {
        let mut requests = soon(self.requests.clone().ready()).await?;
        Ok(Pending(requests.send_request(request, true)?.0))
    }
}

/// A call whose answer is to come.
pub(crate) struct Pending(ResponseFuture);

impl Pending {
    /// The answer's head, and its body to come.
    pub(crate) async fn head(self) -> Result<Answer, h2::Error> {
        let (head, body) = soon(self.0).await?.into_parts();
        Ok(Answer {
            status: head.status,
            head: head.headers,
            body,
        })
    }

    /// The code of an answer without a body; fails if there was one.
    pub(crate) async fn code_in_head(self) -> Code {
        let answer = self.head().await.unwrap();
        assert!(answer.body.is_end_stream(), "trailers only");
        code(&answer.head)
    }
}

/// An answer whose body is to come.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) head: HeaderMap,
    body: h2::RecvStream,
}

impl Answer {
    /// The next bytes; `None` when the trailers come.
    pub(crate) async fn data(&mut self) -> Option<Bytes> {
        let data = soon(self.body.data()).await?.unwrap();
        self.body
            .flow_control()
            .release_capacity(data.len())
            .unwrap();
        Some(data)
    }

    /// Reads to the end.
    pub(crate) async fn trailers(mut self) -> HeaderMap {
        assert!(!self.head.contains_key("grpc-status"), "not in the head");
        while self.data().await.is_some() {}
        soon(self.body.trailers())
            .await
            .unwrap()
            .expect("a stream ends with trailers")
    }
}

pub(crate) fn code(headers: &HeaderMap) -> Code {
    Code::from_bytes(headers["grpc-status"].as_bytes())
}

/// What all tests have logged: callsites are shared by all threads, so that a subscriber per test
/// would miss some.
pub(crate) fn log() -> &'static Log {
    static LOG: OnceLock<Log> = OnceLock::new();
    LOG.get_or_init(|| {
        let log = Log::default();
        let json = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .event_format(Json)
            .with_writer(log.clone());
        // Not in a child process that has set up its own.
        _ = json.try_init();
        log
    })
}

/// JSON lines.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn lines(&self) -> Vec<serde_json::Value> {
        self.0
            .lock()
            .unwrap()
            .split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
