//! One connection: handshake, life, GOAWAY (or, of HTTP/1.1, `connection: close`), end.
//!
//! A connection without a call of a caller that is known gives way to new ones.
//!
//! Must hold: every wait here has a limit. A connection never just vanishes from under its calls:
//! GOAWAY first, then time to finish, then a status for what is left, then the cut.

use std::{
    io::{self, Cursor},
    net::IpAddr,
    os::fd::AsFd as _,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use hyper_util::{rt::TokioIo, server::graceful::GracefulConnection};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest},
    net::TcpStream,
    select,
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::BoxError;

use super::{
    Drain, Server,
    access::Peer,
    call::Calls,
    handshake::{Failed, Reason},
    jitter::jittered,
    open_call::{Connected, OpenCalls},
    writes::{Writes, gathered},
};
use crate::shares::{GivesWay, Permit};

/// What every HTTP/2 client sends first (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The first byte of a TLS client (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// Time for the statuses of calls that were cut to reach their callers. One that does not read is
/// not waited for.
pub(super) const FLUSH: Duration = Duration::from_secs(1);

/// How long a connection has been without such a call before it gives way.
const IDLE: Duration = Duration::from_secs(1);

/// A connection's part of all connections, which gives way to others.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    permit: Mutex<Permit>,
    gave_way: CancellationToken,
}

impl ConnectionPermit {
    pub(super) fn new(permit: Permit) -> Arc<Self> {
        let this = Arc::new(Self {
            permit: Mutex::new(permit),
            gave_way: CancellationToken::new(),
        });
        this.permit().give_way(Instant::now(), this.holder());
        this
    }

    fn holder(self: &Arc<Self>) -> Weak<dyn GivesWay> {
        let holder: Weak<Self> = Arc::downgrade(self);
        holder
    }

    fn permit(&self) -> MutexGuard<'_, Permit> {
        self.permit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives way but while such calls are open, for ever.
    async fn follow(self: Arc<Self>, mut open: watch::Receiver<OpenCalls>) {
        while open.wait_for(|open| open.known > 0).await.is_ok() {
            self.permit().stay();
            loop {
                if open.wait_for(|open| open.known == 0).await.is_err() {
                    return;
                }
                let since = Instant::now();
                let again = async { open.wait_for(|open| open.known > 0).await.is_err() };
                if timeout(IDLE, again).await.is_err() {
                    self.permit().give_way(since, self.holder());
                    break;
                }
            }
        }
    }
}

impl GivesWay for ConnectionPermit {
    fn give_way(&self) {
        self.gave_way.cancel();
    }
}

/// Serves a connection until it is closed.
pub(super) async fn serve(
    stream: TcpStream,
    address: IpAddr,
    permit: Arc<ConnectionPermit>,
    server: &Server,
) {
    let limits = &server.limits;
    // Frames are written when they are complete; waiting for more (Nagle) only delays events.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let closed = peer_closed(&stream, server.web.is_some());
    // Under one limit, since all of it is a stranger's time.
    let shaken = select! {
        shaken = timeout(limits.handshake, handshake(stream, address, server)) => shaken,
        () = permit.gave_way.cancelled() => return,
    };
    let (io, http, peer) = match shaken.unwrap_or_else(|_| Err(Reason::Timeout.into())) {
        Ok(shaken) => shaken,
        Err(failed) => return server.handshakes.note(&server.telemetry, address, &failed),
    };

    let open = watch::Sender::new(OpenCalls::default());
    let end = server.end.child_token();
    let calls = Calls {
        routes: Arc::clone(&server.routes),
        access: server.access.clone(),
        peer,
        drain: Drain {
            begun: server.draining.clone(),
            within: limits.drain_timeout / 2,
        },
        max_deadline: limits.deadline,
        telemetry: server.telemetry.clone(),
        max_metadata: limits.metadata as usize,
        max_message: limits.request_bytes,
        pack_above: limits.pack_above,
        call_shares: server.call_shares.clone(),
        infra_shares: server.infra_shares.clone(),
        byte_shares: server.byte_shares.clone(),
        message_timeout: limits.message,
        reaper: server.reaper.clone(),
        connected: Connected {
            max_age: limits.call_age,
            piece: super::piece(limits),
            end: end.clone(),
            open: open.clone(),
        },
    };
    let (io, writes) = gathered(io);
    let io = TokioIo::new(io);
    match (http, &server.web) {
        (Http::Two, None) => {
            live(
                server.http2.serve_connection(io, calls),
                &writes,
                server,
                permit,
                open.subscribe(),
                end,
            )
            .await;
        }
        (Http::Two, Some(web)) => {
            drop(closed);
            let calls = web.calls(calls, limits.handshake);
            live(
                server.http2.serve_connection(io, calls),
                &writes,
                server,
                permit,
                open.subscribe(),
                end,
            )
            .await;
        }
        (Http::One, Some(web)) => {
            let calls = web.calls(calls, limits.handshake);
            let live = live(
                server.http1.serve_connection(io, calls),
                &writes,
                server,
                permit,
                open.subscribe(),
                end,
            );
            select! {
                () = live => {}
                () = closed => {}
            }
        }
        // The handshake has refused it.
        (Http::One, None) => {}
    }
}

/// Ready when the peer of an HTTP/1.1 connection has closed its side, and [`FLUSH`] later, for what it
/// has asked for before. The library sees that by reading alone, and does not read on behind the
/// beginning of the next request.
fn peer_closed(stream: &TcpStream, is_asked: bool) -> impl Future<Output = ()> + Send + use<> {
    // A socket of its own has a readiness of its own, to be cleared without reading. Without one it
    // is as if nobody ever left.
    let socket = is_asked
        .then(|| stream.as_fd().try_clone_to_owned().ok())
        .flatten()
        .and_then(|socket| TcpStream::from_std(socket.into()).ok());
    async move {
        let Some(socket) = socket else {
            return std::future::pending().await;
        };
        while let Ok(ready) = socket.ready(Interest::READABLE).await
            && !ready.is_read_closed()
        {
            let not_read = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
            _ = socket.try_io(Interest::READABLE, not_read);
        }
        sleep(FLUSH).await;
    }
}

/// From the first call to the end. Not an `async fn`: the compiler does not see that one to be
/// `Send`.
fn live(
    connection: impl GracefulConnection<Error: Into<BoxError>> + Send,
    writes: &Writes<Box<dyn Io>>,
    server: &Server,
    permit: Arc<ConnectionPermit>,
    open: watch::Receiver<OpenCalls>,
    end: CancellationToken,
) -> impl Future<Output = ()> + Send {
    let limits = &server.limits;
    async move {
        let mut connection = pin!(connection);
        let grace = select! {
            ended = writes.polled(connection.as_mut()) => {
                return ended.map_or_else(|error| say_ended(server, &error.into()), |()| ());
            }
            () = after(limits.age.map(jittered)) => Some(limits.age_grace),
            () = idle(open.clone(), limits.idle) => Some(limits.age_grace),
            () = Arc::clone(&permit).follow(open) => None,
            () = permit.gave_way.cancelled() => Some(Duration::ZERO),
            // No time of its own: the server's drain timeout bounds it.
            () = server.draining.cancelled() => None,
        };
        // GOAWAY, or `connection: close`. From here on the connection ends as soon as no call is
        // open.
        connection.as_mut().graceful_shutdown();
        select! {
            _ = writes.polled(connection.as_mut()) => return,
            () = after(grace) => {}
            () = end.cancelled() => {}
        }
        // What still runs is cut, and says so.
        end.cancel();
        _ = timeout(FLUSH, writes.polled(connection)).await;
    }
}

/// Says why a connection ended, if that was an error. One that the library closed for what its
/// peer did (resets without end, frames out of bounds) is a warning.
fn say_ended(server: &Server, error: &BoxError) {
    let cause = error.source().and_then(|cause| cause.downcast_ref());
    let closed = cause.is_some_and(|cause: &h2::Error| cause.is_go_away() && cause.is_library());
    let Some(suppressed) = server.lines.ended.due() else {
        return;
    };
    let cause = cause.map(tracing::field::display);
    if closed {
        tracing::warn!(%error, cause, suppressed, "a connection was closed for what its peer did");
    } else {
        tracing::debug!(%error, cause, suppressed, "a connection ended with an error");
    }
}

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Http {
    /// HTTP/1.1, as browsers do without TLS.
    One,
    /// HTTP/2.
    Two,
}

/// TLS, if there is any, and the client's first bytes.
async fn handshake(
    stream: TcpStream,
    address: IpAddr,
    server: &Server,
) -> Result<(Box<dyn Io>, Http, Peer), Failed> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Err(Reason::Probe.into());
    }
    let Some(tls) = &server.tls else {
        if first == [TLS_HANDSHAKE] {
            return Err(Reason::Tls.into());
        }
        let (read, write) = stream.into_split();
        let (io, http) = preface(read, write).await?;
        spoken(http, server)?;
        return Ok((Box::new(io), http, Peer::new(address, None)));
    };
    let stream = TlsAcceptor::from(tls.get()).accept(stream).await?;
    let peer = Peer::new(
        address,
        stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| chain.first()),
    );
    let (read, write) = tokio::io::split(stream);
    let (io, http) = preface(read, write).await?;
    spoken(http, server)?;
    Ok((Box::new(io), http, peer))
}

/// Refuses HTTP/1.1 where no page may call.
fn spoken(http: Http, server: &Server) -> Result<(), Failed> {
    if http == Http::One && server.web.is_none() {
        Err(Reason::NotHttp2.into())
    } else {
        Ok(())
    }
}

/// A connection in the clear or by TLS.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Waits for the preface, or for a byte that is not its, and puts it back in front. hyper reads it,
/// too, but without a limit and without saying when it has.
async fn preface<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    mut read: R,
    write: W,
) -> io::Result<(impl AsyncRead + AsyncWrite + Unpin, Http)> {
    let mut start = Vec::with_capacity(PREFACE.len());
    while start.len() < PREFACE.len() && PREFACE.starts_with(&start) {
        let missing = PREFACE.len() - start.len();
        if (&mut read)
            .take(missing as u64)
            .read_buf(&mut start)
            .await?
            == 0
        {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let http = if start == PREFACE {
        Http::Two
    } else {
        Http::One
    };
    Ok((tokio::io::join(Cursor::new(start).chain(read), write), http))
}

/// Ready once no call was open for the whole of `limit`.
async fn idle(mut open: watch::Receiver<OpenCalls>, limit: Option<Duration>) {
    while open.wait_for(|open| open.all == 0).await.is_ok() {
        select! {
            () = after(limit) => return,
            _ = open.changed() => {}
        }
    }
}

async fn after(limit: Option<Duration>) {
    match limit {
        Some(limit) => sleep(limit).await,
        None => std::future::pending().await,
    }
}
