//! An attacker: how it reaches the gateway, and what it holds open. It reads no more than its network
//! takes.

use std::{
    io,
    iter::Sum,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::Request;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use crate::tls::Tls;

/// What an attack holds open, until it is dropped.
pub(crate) type Held = Vec<Box<dyn Holding>>;

pub(crate) trait Holding: Send {
    /// What became of its calls.
    fn tally(self: Box<Self>) -> Tally;
}

/// What became of calls.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    /// They have an answer that has begun.
    pub(crate) taken: usize,
    pub(crate) refused: usize,
    /// They have none.
    pub(crate) waiting: usize,
}

impl Sum for Tally {
    fn sum<I: Iterator<Item = Self>>(tallies: I) -> Self {
        tallies.fold(Self::default(), |sum, one| Self {
            taken: sum.taken + one.taken,
            refused: sum.refused + one.refused,
            waiting: sum.waiting + one.waiting,
        })
    }
}

/// Bytes are all that was said by it.
impl Holding for Box<dyn Io> {
    fn tally(self: Box<Self>) -> Tally {
        Tally {
            waiting: 1,
            ..Tally::default()
        }
    }
}

/// How an attacker reaches the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Grpc,
    Tls,
    /// gRPC-Web over HTTP/2.
    Web,
    /// gRPC-Web as text over HTTP/1.1: a connection for each call.
    WebHttp1,
}

impl Way {
    /// How much of each answer the attacker's network takes, in bytes: nothing, so that nothing is
    /// written, or the usual 64 KiB, so that answers are in the middle of it.
    fn window(self) -> u32 {
        if self == Self::Grpc { 0 } else { 65_535 }
    }
}

/// Where the gateway is.
#[derive(Clone, Copy)]
pub(crate) struct Destination<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<&'a Tls>,
    pub(crate) way: Way,
}

/// A call as it is begun.
pub(crate) struct Call {
    /// Service and method.
    pub(crate) path: &'static str,
    pub(crate) credential: String,
    pub(crate) timeout: Option<&'static str>,
    /// The messages behind their prefixes, or as much of them as is sent.
    pub(crate) body: Body,
}

/// What is sent of a call's messages.
pub(crate) enum Body {
    /// All of them, and the end.
    Whole(Vec<u8>),
    /// This, and no end.
    Begun(Vec<u8>),
    /// This, then this in pieces of one byte, and no end.
    Pieces(Vec<u8>, Vec<u8>),
}

pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Destination<'_> {
    /// A connection, after its handshake.
    pub(crate) async fn connect(self) -> io::Result<Box<dyn Io>> {
        let socket = TcpSocket::new_v4()?;
        if self.way == Way::WebHttp1 {
            // The network has no windows but its own; and with a connection for each call, an
            // attacker at the same address as others would have their connections, too.
            socket.bind(([127, 0, 0, 2], 0).into())?;
            socket.set_recv_buffer_size(4 << 10)?;
        }
        let stream: TcpStream = socket.connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(match self.tls {
            Some(tls) => Box::new(tls.connect(stream).await?),
            None => Box::new(stream),
        })
    }

    /// Connections that say no more than this.
    pub(crate) async fn connections(self, count: usize, bytes: &[u8]) -> Held {
        let mut held: Held = Vec::new();
        for _ in 0..count {
            // One that had to give way may be gone.
            let Ok(mut stream) = self.connect().await else {
                continue;
            };
            _ = stream.write_all(bytes).await;
            held.push(Box::new(stream));
        }
        held
    }

    /// Calls on connections of a hundred each.
    pub(crate) async fn calls(self, count: usize, call: impl Fn(usize) -> Call) -> Held {
        let mut held: Held = Vec::new();
        for from in (0..count).step_by(100) {
            let calls = (from..count.min(from + 100)).map(&call);
            if self.way == Way::WebHttp1 {
                for call in calls {
                    if let Ok(stream) = self.call_by_http1(call).await {
                        held.push(Box::new(stream));
                    }
                }
                continue;
            }
            let Ok(mut attacker) = Attacker::connect(self).await else {
                continue;
            };
            for call in calls {
                if !attacker.call(call).await {
                    break;
                }
            }
            held.push(Box::new(attacker));
        }
        held
    }

    async fn call_by_http1(self, call: Call) -> io::Result<Box<dyn Io>> {
        let (mut body, ends) = match call.body {
            Body::Whole(body) => (body, true),
            Body::Begun(body) => (body, false),
            Body::Pieces(mut body, pieces) => {
                body.extend(pieces);
                (body, false)
            }
        };
        if !ends {
            body.truncate(body.len() / 3 * 3);
        }
        let body = BASE64_STANDARD.encode(body);
        let length = body.len() + if ends { 0 } else { 4 };
        // Behind a whole request the next one begins: nobody reads it, or sees its end.
        let next = if ends { "POST" } else { "" };
        let deadline = call.timeout.map(|it| format!("grpc-timeout: {it}\r\n"));
        let head = format!(
            "POST /{} HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/grpc-web-text\r\n\
             authorization: {}\r\n{}content-length: {length}\r\n\r\n",
            call.path,
            call.credential,
            deadline.unwrap_or_default()
        );
        let mut stream = self.connect().await?;
        let said = async {
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(body.as_bytes()).await?;
            stream.write_all(next.as_bytes()).await
        };
        // What is refused may not be read.
        if let Ok(said) = timeout(Duration::from_secs(1), said).await {
            said?;
        }
        Ok(stream)
    }
}

/// A connection by HTTP/2.
pub(crate) struct Attacker {
    requests: h2::client::SendRequest<Bytes>,
    content_type: &'static str,
    _connection: AbortOnDropHandle<()>,
    /// What is under way, which is not looked at.
    open: Vec<(h2::client::ResponseFuture, h2::SendStream<Bytes>)>,
}

impl Attacker {
    pub(crate) async fn connect(destination: Destination<'_>) -> io::Result<Self> {
        let stream = destination.connect().await?;
        let (requests, connection) = h2::client::Builder::new()
            .initial_window_size(destination.way.window())
            .handshake(stream)
            .await
            .map_err(io::Error::other)?;
        Ok(Self {
            requests,
            content_type: if destination.way == Way::Web {
                "application/grpc-web+proto"
            } else {
                "application/grpc"
            },
            _connection: AbortOnDropHandle::new(tokio::spawn(
                async move { drop(connection.await) },
            )),
            open: Vec::new(),
        })
    }

    /// Waits until all of its calls that are answered soon have their answer's head.
    pub(crate) async fn settle(&mut self) {
        let answers = async {
            for (answer, _) in &mut self.open {
                // Refused is answered, too.
                _ = answer.await;
            }
        };
        _ = timeout(Duration::from_secs(2), answers).await;
    }

    /// Begins a call. True if there was a stream for it.
    pub(crate) async fn call(&mut self, call: Call) -> bool {
        let mut request = Request::post(format!("http://gateway/{}", call.path))
            .header("content-type", self.content_type)
            .header("authorization", call.credential)
            .header("te", "trailers");
        if let Some(timeout) = call.timeout {
            request = request.header("grpc-timeout", timeout);
        }
        let Ok(mut requests) = self.requests.clone().ready().await else {
            return false;
        };
        let request = request.body(()).expect("a request");
        let Ok((answer, mut stream)) = requests.send_request(request, false) else {
            return false;
        };
        let sent = match call.body {
            Body::Whole(body) => stream.send_data(body.into(), true).is_ok(),
            Body::Begun(body) => stream.send_data(body.into(), false).is_ok(),
            Body::Pieces(body, pieces) => {
                let pieces = Bytes::from(pieces);
                let mut pieces = (0..pieces.len()).map(|at| pieces.slice(at..=at));
                stream.send_data(body.into(), false).is_ok()
                    && pieces.all(|piece| stream.send_data(piece, false).is_ok())
            }
        };
        self.open.push((answer, stream));
        sent
    }
}

impl Holding for Attacker {
    fn tally(mut self: Box<Self>) -> Tally {
        let mut context = Context::from_waker(Waker::noop());
        let of = |(answer, _): &mut (h2::client::ResponseFuture, _)| {
            let (taken, refused) = match Pin::new(answer).poll(&mut context) {
                Poll::Pending => (0, 0),
                // The status of one that is refused stands in its head.
                Poll::Ready(Ok(head)) if !head.headers().contains_key("grpc-status") => (1, 0),
                Poll::Ready(_) => (0, 1),
            };
            Tally {
                taken,
                refused,
                waiting: 1 - taken - refused,
            }
        };
        self.open.iter_mut().map(of).sum()
    }
}
