//! The flags of the commands that call a running gateway: `healthcheck`, `run`, `watch`.
//!
//! The variables of the address and of TLS are those that a container of the gateway has for its
//! health check: in it, `run` and `watch` need no flags either.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

use super::values::address;

/// Which gateway is called, and how it and its caller show who they are.
#[derive(Debug, Args)]
pub struct GatewayAddress {
    /// The gateway's address, to be called by gRPC. By default the one that `serve` would listen on,
    /// from the same variable.
    #[arg(long, env = "RUNS_GATEWAY_LISTEN", default_value = "127.0.0.1:50051", value_parser = address)]
    pub addr: SocketAddr,

    /// CAs that sign the gateway's certificate, PEM: calls over TLS.
    #[arg(long, env = "RUNS_GATEWAY_HEALTHCHECK_CA_FILE")]
    pub tls_ca_file: Option<PathBuf>,

    /// The name in the gateway's certificate.
    #[arg(
        long,
        default_value = "localhost",
        env = "RUNS_GATEWAY_HEALTHCHECK_TLS_NAME"
    )]
    pub tls_name: String,

    /// The caller's certificate chain, PEM, for a gateway that asks for client certificates.
    #[arg(long, requires_all = ["client_key_file", "tls_ca_file"])]
    pub client_cert_file: Option<PathBuf>,

    /// The private key of --client-cert-file, PEM.
    #[arg(long, requires = "client_cert_file")]
    pub client_key_file: Option<PathBuf>,
}

/// The flags of `healthcheck`.
#[derive(Debug, Args)]
pub struct HealthcheckArgs {
    /// What is asked by gRPC.
    #[command(flatten)]
    pub gateway: GatewayAddress,

    /// The admin port's address, to be asked by HTTP whether the gateway takes calls, whatever the
    /// listener asks of its callers. By default the one that `serve` was given by the same variable.
    #[arg(long, env = "RUNS_GATEWAY_ADMIN_LISTEN", value_parser = address)]
    pub admin_addr: Option<SocketAddr>,
}

/// What `run` and `watch` have in common.
#[derive(Debug, Args)]
pub struct CallerArgs {
    /// What is called.
    #[command(flatten)]
    pub gateway: GatewayAddress,

    /// A file with the caller's token or key, sent as `authorization: Bearer TOKEN`.
    #[arg(long)]
    pub token_file: Option<PathBuf>,

    /// Ctrl-C cancels the run and shows its end; a second one leaves. Without this, the first one
    /// leaves, and the run goes on.
    #[arg(long)]
    pub cancel_on_interrupt: bool,
}

/// The flags of `run`.
#[derive(Debug, Args)]
#[command(after_help = EXITS)]
pub struct RunArgs {
    /// The question: the only message of a new thread.
    pub question: String,

    /// The assistant that answers. Without one, an assistant without tools is made, and removed when
    /// the run is over.
    #[arg(long)]
    pub assistant: Option<String>,

    /// The model of the assistant that is made.
    #[arg(long, default_value = "gpt-4o-mini")]
    pub model: String,

    /// How to call.
    #[command(flatten)]
    pub caller: CallerArgs,
}

/// The flags of `watch`.
#[derive(Debug, Args)]
#[command(after_help = EXITS)]
pub struct WatchArgs {
    /// The run's thread.
    #[arg(value_name = "THREAD")]
    pub thread_id: String,

    /// The run. If it was recorded for this caller, its text comes from the beginning, and then as
    /// it is written; else each message comes once it is whole.
    #[arg(value_name = "RUN")]
    pub run_id: String,

    /// How to call.
    #[command(flatten)]
    pub caller: CallerArgs,
}

const EXITS: &str = "\
The text goes to standard output, what else goes on to standard error; where both are a terminal, a \
line below the text says how far the run is. Control characters in what comes are shown, not \
sent. A connection that breaks is resumed.

Exit codes: 0 the run was completed; 1 it could not be made or shown; 2 bad flags; 3 it failed, \
expired, was cancelled or is incomplete; 4 it waits for tool outputs, which `run` cannot give \
(`watch` waits until somebody has); 130 left by Ctrl-C.";
