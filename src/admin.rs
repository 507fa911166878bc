//! The admin port: `/metrics`, `/healthz`, `/readyz`, `/version`, over HTTP/1.1, for probes,
//! scrapers and people with curl.
//!
//! Must hold: it answers as long as the process lives, the drain included, and says the truth:
//! `/healthz` that the process runs, `/readyz` that it takes calls, which a draining one does not.
//! Neither follows the upstream: a fleet must not drain because an upstream blinks.
//!
//! It has no access control and so no secrets: it listens on loopback unless told otherwise.

use std::{collections::VecDeque, convert::Infallible, net::SocketAddr, time::Duration};

use axum::{Router, http::StatusCode, routing::get};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::telemetry::{OncePerSecond, PROMETHEUS_TEXT, Telemetry};

/// Where the admin port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admin {
    /// Here, if it can be. That another gateway is there already is no reason not to serve.
    IfFree(SocketAddr),
    /// Here.
    At(SocketAddr),
}

/// Connections at a time. Scrapers and probes have one each. The oldest one gives way to one more:
/// an answer takes milliseconds, and connections on which nothing is said must not keep probes out.
const CONNECTIONS: usize = 64;

/// A connection is closed when it is this old, whatever it does.
const CONNECTION_TIME: Duration = Duration::from_secs(60);

/// How long a request's head may take to come.
const HEAD_TIME: Duration = Duration::from_secs(5);

const VERSION: &str = concat!(
    "{\"name\":\"",
    env!("CARGO_PKG_NAME"),
    "\",\"version\":\"",
    env!("CARGO_PKG_VERSION"),
    "\"}\n"
);

/// Takes the admin port. `None` if it need not be had and cannot.
pub async fn listen(admin: Admin) -> Result<Option<TcpListener>, String> {
    let (address, needed) = match admin {
        Admin::At(address) => (address, true),
        Admin::IfFree(address) => (address, false),
    };
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if needed => Err(format!(
            "cannot listen on {address} (--admin-listen): {error}"
        )),
        Err(error) => {
            tracing::warn!(%address, %error, "no admin port: give this gateway one of its own by --admin-listen");
            Ok(None)
        }
    }
}

/// Serves until its future is dropped. `draining` is cancelled when the gateway takes no more
/// calls.
pub async fn serve(
    listener: TcpListener,
    telemetry: Telemetry,
    draining: CancellationToken,
) -> Infallible {
    let routes = TowerToHyperService::new(routes(telemetry, draining));
    let mut connections = VecDeque::new();
    let quiet = OncePerSecond::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                if let Some(suppressed) = quiet.due() {
                    tracing::warn!(%error, suppressed, "the admin port cannot accept connections");
                }
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        connections.retain(|open: &AbortOnDropHandle<()>| !open.is_finished());
        if connections.len() >= CONNECTIONS {
            connections.pop_front();
        }
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME);
        let served = http.serve_connection(TokioIo::new(stream), routes.clone());
        // How it ends is the peer's business.
        let served = async move { drop(timeout(CONNECTION_TIME, served).await) };
        connections.push_back(AbortOnDropHandle::new(tokio::spawn(served)));
    }
}

fn routes(telemetry: Telemetry, draining: CancellationToken) -> Router {
    let metrics = move || async move {
        (
            [("content-type", PROMETHEUS_TEXT)],
            telemetry.metrics().render(),
        )
    };
    let ready = move || async move {
        if draining.is_cancelled() {
            (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
        } else {
            (StatusCode::OK, "ready\n")
        }
    };
    let version = || async { ([("content-type", "application/json")], VERSION) };
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/version", get(version))
}
