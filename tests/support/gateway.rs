//! A gateway for one test: in this process and runtime, on a port of its own, set up from flags by
//! the same code as the program's.
//!
//! Must hold: it ends as it does in production, by a drain, and a test that forgets the drain
//! fails. It shares the test's runtime, so that a paused clock is the gateway's, too.

use std::{net::SocketAddr, thread};

use clap::Parser as _;
use runs_gateway::{
    app::App,
    config::{Cli, Command, Serve},
    v1::{run_service_client::RunServiceClient, run_step_service_client::RunStepServiceClient},
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// A gateway that serves until it is [drained](Self::drain).
pub(crate) struct Gateway {
    address: SocketAddr,
    channel: Channel,
    shutdown: CancellationToken,
    serving: Option<JoinHandle<()>>,
}

/// A gateway to the upstream at `url`, with `flags` in addition to those that every test needs. It
/// does not retry: a script says how often it is asked.
pub(crate) async fn spawn_gateway(url: &str, flags: &[&str]) -> Gateway {
    let flags: Vec<_> = ["--max-retries", "0"]
        .iter()
        .chain(flags)
        .copied()
        .collect();
    spawn_retrying_gateway(url, &flags).await
}

/// The same with retries as they are by default.
pub(crate) async fn spawn_retrying_gateway(url: &str, flags: &[&str]) -> Gateway {
    let always = [
        "runs-gateway",
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--drain-delay",
        "0s",
        "--upstream-url",
        url,
    ];
    let cli =
        Cli::try_parse_from(always.iter().chain(flags)).unwrap_or_else(|error| panic!("{error}"));
    let Command::Serve(args) = cli.command else {
        unreachable!("the command is serve")
    };
    let config = Serve::try_from(*args).expect("a configuration that can be run");
    let app = App::new(&config).await.expect("a gateway");
    let listener = TcpListener::bind(config.listen).await.expect("a free port");
    let address = listener.local_addr().expect("a bound listener");
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(app.serve(listener, None, shutdown.clone()));
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .expect("a URL")
        .connect_lazy();
    Gateway {
        address,
        channel,
        shutdown,
        serving: Some(serving),
    }
}

impl Gateway {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// All clients share one connection.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn runs(&self) -> RunServiceClient<Channel> {
        RunServiceClient::new(self.channel())
    }

    pub(crate) fn steps(&self) -> RunStepServiceClient<Channel> {
        RunStepServiceClient::new(self.channel())
    }

    /// Shuts down and waits until all is closed. Fails the test if the gateway panicked.
    pub(crate) async fn drain(mut self) {
        self.shutdown.cancel();
        self.serving
            .take()
            .expect("drained once only")
            .await
            .expect("a gateway that does not panic");
    }
}

impl From<&Gateway> for Channel {
    fn from(gateway: &Gateway) -> Self {
        gateway.channel()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        assert!(
            self.serving.is_none() || thread::panicking(),
            "a test ends with `gateway.drain().await`"
        );
    }
}
