//! A scripted upstream that speaks HTTP/2 in the clear: it says the frames that the test scripts,
//! each request on its turn.
//!
//! Must hold: it cannot hide a failure: what goes wrong in it, or in a script, is a failure of the
//! test that asks for the count of requests.
//!
//! It is written in frames, not on an HTTP/2 library, because libraries do not let a server lie: a
//! GOAWAY that leaves out a request that it has read, a reset in the middle of an answer.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{self, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::timeout,
};

/// What the upstream does, one thing after the other.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Say {
    /// The head of an answer, of this status.
    Head(u16),
    /// A part of its body.
    Part(&'static str),
    /// The rest of its body.
    Rest(&'static str),
    /// `RST_STREAM` of this request.
    Reset(u32),
    /// GOAWAY: this request was seen.
    GoAway(u32),
    /// GOAWAY: this request was not seen, nor any other.
    GoAwayBefore(u32),
    /// Ends the connection.
    Close,
    /// Says nothing any more, not even to pings, and does not end the connection.
    Nothing,
}

pub(crate) const NO_ERROR: u32 = 0;
pub(crate) const INTERNAL_ERROR: u32 = 2;
pub(crate) const REFUSED_STREAM: u32 = 7;
pub(crate) const CANCEL: u32 = 8;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
/// Of DATA and HEADERS.
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// Of SETTINGS and PING.
const ACK: u8 = 1;

type Script = dyn Fn(usize) -> Vec<Say> + Send + Sync;

struct Shared {
    script: Box<Script>,
    seen: watch::Sender<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    requests: usize,
    connections: usize,
    failures: Vec<String>,
}

/// A scripted upstream. It serves until it is dropped.
pub(crate) struct UpstreamH2 {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: AbortHandle,
}

impl UpstreamH2 {
    /// An upstream that does to its n-th request (from 0, on all connections together) what
    /// `script` says.
    pub(crate) async fn start(script: impl Fn(usize) -> Vec<Say> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener");
        let shared = Arc::new(Shared {
            script: Box::new(script),
            seen: watch::Sender::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared))).abort_handle();
        Self {
            shared,
            address,
            accepting,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many requests came.
    pub(crate) fn requests(&self) -> usize {
        let seen = self.shared.seen.borrow();
        assert!(
            seen.failures.is_empty(),
            "the upstream saw: {}",
            seen.failures.join("; ")
        );
        seen.requests
    }

    /// How many connections were accepted.
    pub(crate) fn connections(&self) -> usize {
        self.shared.seen.borrow().connections
    }

    /// Returns once so many requests came.
    pub(crate) async fn wait_for_requests(&self, count: usize) {
        let mut seen = self.shared.seen.subscribe();
        let came = timeout(
            Duration::from_secs(20),
            seen.wait_for(|seen| seen.requests >= count),
        )
        .await;
        assert!(
            came.is_ok(),
            "waited for {count} requests, {} came",
            self.requests()
        );
    }
}

impl Drop for UpstreamH2 {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.expect("a listening socket accepts");
        shared.seen.send_modify(|seen| seen.connections += 1);
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            // The client may leave in any way.
            let _ = serve(stream, &shared).await;
        });
    }
}

async fn serve(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await?;
    if &preface != b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" {
        shared.seen.send_modify(|seen| {
            seen.failures
                .push("a connection that is not HTTP/2".to_owned());
        });
        return Ok(());
    }
    frame(&mut stream, SETTINGS, 0, 0, &[]).await?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let (kind, flags) = (head[3], head[4]);
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; usize::try_from(length).expect("24 bits")];
        stream.read_exact(&mut payload).await?;
        match kind {
            SETTINGS if flags & ACK == 0 => frame(&mut stream, SETTINGS, ACK, 0, &[]).await?,
            PING if flags & ACK == 0 => frame(&mut stream, PING, ACK, 0, &payload).await?,
            HEADERS | DATA if flags & END_STREAM != 0 => {
                let mut number = 0;
                shared.seen.send_modify(|seen| {
                    number = seen.requests;
                    seen.requests += 1;
                });
                for say in (shared.script)(number) {
                    if play(&mut stream, id, say).await?.is_none() {
                        return Ok(());
                    }
                }
            }
            _ => {}
        }
    }
}

/// Does one thing; none if that was the end of the connection.
async fn play(stream: &mut TcpStream, id: u32, say: Say) -> io::Result<Option<()>> {
    match say {
        Say::Head(status) => {
            // `:status`, by its place in the static table, not to be indexed, as plain text.
            let fields = [&[0x08, 3], &*status.to_string().into_bytes()].concat();
            frame(stream, HEADERS, END_HEADERS, id, &fields).await?;
        }
        Say::Part(text) => frame(stream, DATA, 0, id, text.as_bytes()).await?,
        Say::Rest(text) => frame(stream, DATA, END_STREAM, id, text.as_bytes()).await?,
        Say::Reset(code) => frame(stream, RST_STREAM, 0, id, &code.to_be_bytes()).await?,
        Say::GoAway(code) => {
            frame(
                stream,
                GOAWAY,
                0,
                0,
                &[id.to_be_bytes(), code.to_be_bytes()].concat(),
            )
            .await?;
        }
        Say::GoAwayBefore(code) => {
            frame(stream, GOAWAY, 0, 0, &[[0; 4], code.to_be_bytes()].concat()).await?;
        }
        Say::Nothing => std::future::pending().await,
        Say::Close => {
            stream.shutdown().await?;
            return Ok(None);
        }
    }
    Ok(Some(()))
}

async fn frame(
    stream: &mut TcpStream,
    kind: u8,
    flags: u8,
    id: u32,
    payload: &[u8],
) -> io::Result<()> {
    let length = u32::try_from(payload.len())
        .expect("a short payload")
        .to_be_bytes();
    let head = [&length[1..], &[kind, flags], &id.to_be_bytes()].concat();
    stream.write_all(&[&*head, payload].concat()).await
}
