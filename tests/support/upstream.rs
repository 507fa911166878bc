//! The scripted upstream: an HTTP/1.1 server on a real socket that says exactly the bytes that the
//! test scripts, when the test says so, and records what it was asked.
//!
//! Must hold: it cannot hide a failure. A request that nothing was scripted for, a handler that
//! panicked, a request that is not HTTP and a pushed answer that nobody asked for each fail the
//! test when the `Upstream` is dropped. It never sleeps, and it starts no timer in the test's
//! runtime (but [`Step::Pause`]), so that a test may pause the clock.
//!
//! It is written on TCP, not on an HTTP server, because scripts need the bytes: resets, wrong
//! lengths, silence, half an answer.

mod answer;
mod connection;

use std::{
    collections::VecDeque,
    mem,
    net::SocketAddr,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

pub(crate) use answer::{Answer, Step};
use bytes::Bytes;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    task::{AbortHandle, JoinSet},
    time::Instant,
};

/// How long anything is waited for before the test fails: real time, also where the runtime's clock
/// is paused.
const LIMIT: Duration = Duration::from_secs(20);

/// A scripted upstream. It serves until it is dropped.
pub(crate) struct Upstream {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: AbortHandle,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Recorded {
    pub(crate) method: String,
    /// Path and query, exactly as sent.
    pub(crate) target: String,
    /// In the order sent, the names lower-cased.
    pub(crate) headers: Vec<(String, Bytes)>,
    /// The body without its framing.
    pub(crate) body: Bytes,
    /// The connection that it came on: 0 is the first that was accepted.
    pub(crate) connection: usize,
    /// When its last byte was there.
    pub(crate) at: Instant,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Closed {
    pub(crate) at: Instant,
    /// The client closed or reset it. Otherwise this side reset it.
    pub(crate) by_client: bool,
}

type Handler = Box<dyn Fn(&Recorded) -> Answer + Send + Sync>;

struct Shared {
    pushed: Mutex<VecDeque<Answer>>,
    handler: Option<Handler>,
    seen: watch::Sender<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    requests: Vec<Recorded>,
    /// One for each connection that was ever accepted; `None` while it is open.
    connections: Vec<Option<Closed>>,
    failures: Vec<String>,
}

impl Upstream {
    /// An upstream that answers with what is [pushed](Self::push).
    pub(crate) async fn start() -> Self {
        Self::bind(None).await
    }

    /// An upstream that asks `handler` for its answer whenever no pushed one is left. A handler
    /// panics on what it does not expect.
    pub(crate) async fn answering(
        handler: impl Fn(&Recorded) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::bind(Some(Box::new(handler))).await
    }

    async fn bind(handler: Option<Handler>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener");
        let shared = Arc::new(Shared {
            pushed: Mutex::default(),
            handler,
            seen: watch::Sender::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared))).abort_handle();
        Self {
            shared,
            address,
            accepting,
        }
    }

    /// Where it listens: `http://127.0.0.1:port`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Scripts the answer to the next request that has none yet. It must be asked for before the
    /// test ends.
    pub(crate) fn push(&self, answer: Answer) {
        self.shared
            .pushed
            .lock()
            .expect("never held over a panic")
            .push_back(answer);
    }

    /// All requests so far.
    pub(crate) fn requests(&self) -> Vec<Recorded> {
        self.shared.seen.borrow().requests.clone()
    }

    /// The first `count` requests, once there are as many.
    pub(crate) async fn wait_for_requests(&self, count: usize) -> Vec<Recorded> {
        self.wait(&format!("{count} requests"), |seen| {
            seen.requests.len() >= count
        })
        .await;
        self.requests().into_iter().take(count).collect()
    }

    /// How many connections were ever accepted.
    pub(crate) fn accepted(&self) -> usize {
        self.shared.seen.borrow().connections.len()
    }

    /// How many connections are open now.
    pub(crate) fn open(&self) -> usize {
        self.shared
            .seen
            .borrow()
            .connections
            .iter()
            .filter(|closed| closed.is_none())
            .count()
    }

    /// The end of a connection, once it has ended.
    pub(crate) async fn closed(&self, connection: usize) -> Closed {
        let closed = |seen: &Seen| seen.connections.get(connection).copied().flatten();
        self.wait(&format!("connection {connection} to be closed"), |seen| {
            closed(seen).is_some()
        })
        .await;
        closed(&self.shared.seen.borrow()).expect("a closed connection stays closed")
    }

    async fn wait(&self, what: &str, holds: impl Fn(&Seen) -> bool) {
        let mut seen = self.shared.seen.subscribe();
        let came = async { seen.wait_for(|seen| holds(seen)).await.is_ok() };
        let came = tokio::select! { came = came => came, () = real_time(LIMIT) => false };
        assert!(
            came,
            "waited {LIMIT:?} for {what}, saw {:#?}",
            self.shared.seen.borrow()
        );
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.accepting.abort();
        if thread::panicking() {
            return;
        }
        let failures = self.shared.seen.borrow().failures.clone();
        assert!(
            failures.is_empty(),
            "the upstream saw: {}",
            failures.join("; ")
        );
        let unused =
            mem::take(&mut *self.shared.pushed.lock().expect("never held over a panic")).len();
        assert!(unused == 0, "{unused} pushed answers were never asked for");
    }
}

impl Recorded {
    /// The one value of a header. Fails the test if it was sent twice.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self
            .headers
            .iter()
            .filter(|(sent, _)| sent == name)
            .map(|(_, value)| value);
        let value = values.next()?;
        assert!(values.next().is_none(), "{name} was sent more than once");
        Some(str::from_utf8(value).expect("a header of plain text"))
    }

    /// An answer that agrees: a list, and the resource that the request names.
    pub(crate) fn agreed(&self) -> Answer {
        agreed(&self.target)
    }

    /// The body as text.
    pub(crate) fn text(&self) -> &str {
        str::from_utf8(&self.body).expect("a body of text")
    }
}

/// An answer that suits any request to this path: a list, and the resource that the path names.
pub(crate) fn agreed(target: &str) -> Answer {
    let path = target.split('?').next().unwrap_or_default();
    let mut path = path
        .split('/')
        .skip_while(|segment| !["threads", "assistants"].contains(segment));
    // A collection, an id in it, a collection of that one's, and so on.
    let mut id = "x";
    while let (Some(_), Some(next)) = (path.next(), path.next()) {
        id = next;
    }
    let id = percent_encoding::percent_decode_str(id).decode_utf8();
    let id = id.expect("an id of text");
    Answer::json(200, serde_json::json!({"id": id, "data": []}).to_string())
}

impl Shared {
    /// Records a request and picks its answer.
    fn answer(&self, request: &Recorded) -> Answer {
        self.seen
            .send_modify(|seen| seen.requests.push(request.clone()));
        if let Some(answer) = self
            .pushed
            .lock()
            .expect("never held over a panic")
            .pop_front()
        {
            return answer;
        }
        let what = format!("{} {}", request.method, request.target);
        let failure = match &self.handler {
            None => format!("unscripted request: {what}"),
            Some(handler) => match panic::catch_unwind(AssertUnwindSafe(|| handler(request))) {
                Ok(answer) => return answer,
                Err(_) => format!("the handler panicked on {what}"),
            },
        };
        self.fail(failure);
        Answer::json(
            500,
            r#"{"error":{"message":"the test's script has no answer to this"}}"#,
        )
    }

    fn fail(&self, failure: String) {
        self.seen.send_modify(|seen| seen.failures.push(failure));
    }
}

/// Accepts until it is aborted, which drops all connections with it.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.expect("a listening socket accepts");
                let mut number = 0;
                shared.seen.send_modify(|seen| {
                    number = seen.connections.len();
                    seen.connections.push(None);
                });
                connections.spawn(serve(stream, number, Arc::clone(&shared)));
            }
            Some(Err(panicked)) = connections.join_next() => shared.fail(panicked.to_string()),
        }
    }
}

async fn serve(mut stream: TcpStream, number: usize, shared: Arc<Shared>) {
    let ended = connection::run(&mut stream, number, |request| shared.answer(request)).await;
    // Gone from the network before it is gone from the record.
    drop(stream);
    let by_client = ended.unwrap_or_else(|failure| {
        shared.fail(failure);
        false
    });
    shared.seen.send_modify(|seen| {
        // What was dropped has no record any more.
        if let Some(connection) = seen.connections.get_mut(number) {
            *connection = Some(Closed {
                at: Instant::now(),
                by_client,
            });
        }
    });
}

/// Passes after so much real time. A timer of the runtime would make a paused clock jump.
async fn real_time(duration: Duration) {
    let (passed, wait) = oneshot::channel();
    // Disconnected, and so at its end, as soon as this future is dropped.
    let (_held, dropped) = std::sync::mpsc::channel::<()>();
    thread::spawn(move || {
        let _ = dropped.recv_timeout(duration);
        let _ = passed.send(());
    });
    let _ = wait.await;
}
