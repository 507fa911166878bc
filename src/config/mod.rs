//! The command line and the environment, as typed configuration. Nothing else reads either.
//!
//! Every flag is also an environment variable: `--upstream-url` is `RUNS_GATEWAY_UPSTREAM_URL`
//! (`environment`). A flag wins.
//!
//! A setting's flag, default and meaning stand with the setting, wherever that is at home; here is
//! what has to be made of flags, or checked over several of them.
//!
//! Must hold: what comes out of [`Serve::try_from`] is safe to run. What is wrong is one line, which
//! never holds a key.

mod access;
mod client;
mod dev;
mod environment;
mod event_log;
mod gateway;
mod invalid;
mod isolation;
mod model;
mod serve;
mod telemetry;
#[cfg(test)]
mod tests;
mod upstream;
mod values;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

pub use self::{
    access::{AccessConfig, JwksSource},
    client::{CallerArgs, GatewayAddress, HealthcheckArgs, RunArgs, WatchArgs},
    dev::{DemoArgs, Dev, DevArgs},
    environment::{Reader, check_environment, command_line, log_old_names, settings},
    invalid::Invalid,
    model::ModelConfig,
    serve::{Serve, ServeArgs},
    telemetry::TelemetryConfig,
};

/// gRPC in front of Runs REST APIs (assistants, threads, runs, run steps).
#[derive(Debug, Parser)]
#[command(name = "runs-gateway", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the gateway.
    Serve(Box<ServeArgs>),
    /// Run the gateway on an embedded Runs API: to try out, develop and test without a key. Answers
    /// come from a built-in model, or from one behind `--model-url`.
    Dev(Box<DevArgs>),
    /// Show a run with a tool call, from a real gRPC client to the embedded Runs API and back.
    Demo(Box<DemoArgs>),
    /// Ask an assistant a question through a running gateway, and show what goes on.
    Run(RunArgs),
    /// Show what goes on in a run that somebody started.
    Watch(WatchArgs),
    /// Ask a running gateway whether it serves, for container probes: exits with 0 if it does, with
    /// 1 if not.
    Healthcheck(HealthcheckArgs),
    /// Write the contract's .proto files, to generate stubs from.
    Proto {
        /// The folder to write them to.
        #[arg(long)]
        out: PathBuf,
    },
    /// Write man pages and shell completions, for packages.
    #[command(hide = true)]
    PackageFiles {
        /// The folder to write them to.
        #[arg(long)]
        out: PathBuf,
    },
}
