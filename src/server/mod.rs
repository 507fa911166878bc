//! The server: accepts connections, bounds them and their calls, and drains.
//!
//! | file | what it is |
//! |---|---|
//! | `limits`, `memory` | everything that is bounded, and the bounds; what memory there is |
//! | `routes` | the services by name; health and reflection beside the gateway's own |
//! | `health`, `reflection` | what tools and balancers ask |
//! | `message` | a call's messages on the wire: how many, how large, packed or not |
//! | `access` | who may call, and as whom |
//! | `tls` | certificates for the listener |
//! | `connection` | one connection: handshake, age, GOAWAY |
//! | `handshake` | why a handshake failed, for those who have to mend it |
//! | `writes` | what a connection writes in one turn, as one write |
//! | `drain` | streams that leave early when the server drains |
//! | `call`, `deadline` | one call: its deadline, its end, its log line |
//! | `answer` | the body of its answer, which ends in time whether or not it is read |
//! | `web` | calls from pages in browsers |
//!
//! Must hold: one slow, silent or hostile peer takes no more than its share and does not stop the
//! others; nothing, a full descriptor table neither, makes the loop spin or end; a drain ends in
//! bounded time, and every call that it cuts is told so.
//!
//! Why not tonic's own transport server: its age limit cuts without GOAWAY, its streams are
//! unlimited, its handshakes have no limit, and a drain waits for open streams for ever.

mod access;
mod answer;
mod call;
mod connection;
mod deadline;
mod drain;
mod handshake;
mod health;
mod jitter;
mod limits;
mod memory;
mod message;
mod open_call;
mod reflection;
mod routes;
mod termination;
mod tls;
mod trailers;
mod web;
mod writes;

use std::{io, sync::Arc, time::Duration};

use hyper::server::conn::{http1, http2};
use hyper_util::rt::TokioTimer;
use tokio::{
    net::TcpListener,
    select,
    time::{sleep, timeout},
};
use tokio_rustls::rustls::ServerConfig;
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use crate::{
    reloadable::Reloadable,
    shares::{Limit, Owner, Shares},
    telemetry::{OncePerSecond, Telemetry},
};

pub use self::{
    access::{
        Access, Account, FetchRules, Jwks, Jwt, JwtRules, KeySet, Mesh, MeshIdentity, MeshPeer,
        RemoteKeys, Tenant, Tokens,
    },
    answer::EncodedBody,
    call::CallContext,
    drain::Drain,
    health::Health,
    limits::Limits,
    routes::{Routes, routes},
    termination::{Termination, TerminationStatus},
    tls::TlsFiles,
    web::{Origin, Web},
};

/// Time to wait when no connection can be accepted for want of something that only others can give
/// back, such as descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `shutdown`, then drains: health turns `NOT_SERVING`; after [`Limits::drain_delay`]
/// the listener closes and connections get GOAWAY; after [`Limits::drain_timeout`] the calls still
/// open end as UNAVAILABLE. Returns when all is closed and what callers have left to be done is
/// done, two seconds after that at the latest.
pub async fn serve(
    listener: TcpListener,
    served: Served,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let Served {
        routes,
        health,
        access,
        tls,
        web,
        telemetry,
        detached,
    } = served;
    let tasks = TaskTracker::new();
    let bytes = Limit {
        what: "bytes held for callers",
        max: limits.held_bytes,
        flag: "--max-held-bytes",
    };
    let byte_shares = Shares::shown(bytes, telemetry.metrics().bytes_left.clone());
    let server = Arc::new(Server {
        http1: http1(&limits),
        http2: http2(&limits, Tasks(tasks.clone())),
        routes: Arc::new(routes),
        access,
        tls,
        handshakes: handshake::Failures::new(&telemetry),
        telemetry,
        web,
        lines: Lines::default(),
        draining: CancellationToken::new(),
        end: CancellationToken::new(),
        call_shares: Shares::new(Limit {
            what: "calls",
            max: limits.calls,
            flag: "--max-calls",
        }),
        infra_shares: Shares::new(Limit {
            what: "streams of health and reflection",
            max: limits.connections,
            flag: "--max-connections",
        }),
        byte_shares,
        reaper: answer::Reaper::default(),
        limits,
    });
    let reaper = server.reaper.clone();
    let _reaper = AbortOnDropHandle::new(tokio::spawn(async move { reaper.run().await }));

    select! {
        never = accept(&listener, &server, &tasks) => match never {},
        () = async {
            shutdown.cancelled().await;
            tracing::info!("draining");
            health.not_serving();
            sleep(server.limits.drain_delay).await;
        } => {}
    }
    drop(listener);
    server.draining.cancel();
    health.close();
    tasks.close();
    let over = async {
        tasks.wait().await;
        // What calls have left to be done. It ends with the program, done or not.
        detached.close();
        detached.wait().await;
    };
    if timeout(server.limits.drain_timeout, over).await.is_err() {
        tracing::warn!("the drain timeout passed: what still runs is cut");
        server.end.cancel();
        // Connections take up to FLUSH; then the handlers that they had are dropped.
        _ = timeout(2 * connection::FLUSH, tasks.wait()).await;
    }
    tracing::info!("drained");
}

/// What is served, and to whom.
#[derive(Debug)]
pub struct Served {
    /// The services.
    pub routes: Routes,
    /// What health says.
    pub health: Health,
    /// Who may call.
    pub access: Access,
    /// TLS; without it connections are in the clear.
    pub tls: Option<Reloadable<ServerConfig>>,
    /// What counts and traces.
    pub telemetry: Telemetry,
    /// Which pages may call; without any there is no gRPC-Web and no HTTP/1.1.
    pub web: Option<Web>,
    /// What goes on after its caller has left, and is waited for in a drain.
    pub detached: TaskTracker,
}

/// What all connections share.
struct Server {
    access: Access,
    tls: Option<Reloadable<ServerConfig>>,
    telemetry: Telemetry,
    web: Option<Web>,
    limits: Limits,
    http1: http1::Builder,
    http2: http2::Builder<Tasks>,
    routes: Arc<Routes>,
    /// Calls that are open.
    call_shares: Shares,
    /// Streams of health and reflection that are open: as many as connections.
    infra_shares: Shares,
    /// Bytes that are held for calls.
    byte_shares: Shares,
    /// Ends answers that nobody reads.
    reaper: answer::Reaper,
    /// Lines of the log that peers can cause.
    lines: Lines,
    /// Handshakes that failed.
    handshakes: handshake::Failures,
    /// Connections take no more calls.
    draining: CancellationToken,
    /// Calls are cut.
    end: CancellationToken,
}

/// Lines of the log that peers can cause: one a second of each.
#[derive(Default)]
struct Lines {
    accept: OncePerSecond,
    too_many: OncePerSecond,
    ended: OncePerSecond,
}

/// Runs hyper's tasks, one per call, where [`serve`] can wait for them.
#[derive(Clone)]
struct Tasks(TaskTracker);

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

/// As much metadata as the libraries take, in shares of what a call may have, so that a call with
/// more is answered by gRPC's means. Beyond that they answer by HTTP 431 themselves, which clients
/// of gRPC read as UNKNOWN; and h2 ends the whole connection where one block of headers comes in
/// more frames than its limit takes (`too_many_continuations`). So there it is larger. Not without
/// bound: what of a block has come is held for a caller that nobody knows yet.
const TAKEN_HTTP1: u32 = 4;
const TAKEN_HTTP2: u32 = 16;

/// The largest piece of an answer that the HTTP library is given.
fn piece(limits: &Limits) -> usize {
    (limits.stream_send_buffer as usize / 4).clamp(1, 16 << 10)
}

fn http1(limits: &Limits) -> http1::Builder {
    let mut http1 = http1::Builder::new();
    let metadata = limits.metadata.saturating_mul(TAKEN_HTTP1) as usize;
    http1
        .timer(TokioTimer::new())
        // It runs between two requests, too: a browser that comes back connects again.
        .header_read_timeout(limits.handshake)
        .max_header_size(metadata)
        // hyper takes no less.
        .max_buf_size(
            metadata
                .max(limits.stream_send_buffer as usize)
                .max(8 << 10),
        );
    http1
}

fn http2(limits: &Limits, tasks: Tasks) -> http2::Builder<Tasks> {
    let mut http2 = http2::Builder::new(tasks);
    http2
        .timer(TokioTimer::new())
        // gRPC has no use for it.
        .auto_date_header(false)
        .max_concurrent_streams(limits.streams)
        .initial_stream_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        // What it is given last, and what waits for its turn there, are not counted in it.
        .max_send_buf_size(
            (limits.stream_send_buffer as usize)
                .saturating_sub(2 * piece(limits))
                .max(1),
        )
        .max_header_list_size(limits.metadata.saturating_mul(TAKEN_HTTP2))
        .keep_alive_interval(limits.ping_interval)
        .keep_alive_timeout(limits.ping_timeout)
        .max_local_error_reset_streams(limits.error_resets)
        .max_pending_accept_reset_streams(limits.pending_resets);
    http2
}

async fn accept(
    listener: &TcpListener,
    server: &Arc<Server>,
    tasks: &TaskTracker,
) -> std::convert::Infallible {
    let connection_shares = Shares::new(Limit {
        what: "connections",
        max: server.limits.connections,
        flag: "--max-connections",
    });
    loop {
        let (stream, address) = match listener.accept().await {
            Ok((stream, address)) => (stream, address.ip()),
            Err(error) if is_peers(&error) => continue,
            Err(error) => {
                if let Some(suppressed) = server.lines.accept.due() {
                    tracing::warn!(%error, suppressed, "cannot accept connections");
                }
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = connection_shares.take(Owner::of(&address.to_canonical()), 1) else {
            if let Some(suppressed) = server.lines.too_many.due() {
                tracing::warn!(
                    limit = server.limits.connections,
                    suppressed,
                    "too many connections: closing new ones"
                );
            }
            continue;
        };
        let server = Arc::clone(server);
        tasks.spawn(async move {
            let open = &server.telemetry.metrics().connections;
            open.inc();
            let permit = connection::ConnectionPermit::new(permit);
            connection::serve(stream, address, permit, &server).await;
            open.dec();
        });
    }
}

/// Whether only this connection failed, before it was accepted: there is nothing to wait for.
fn is_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}
