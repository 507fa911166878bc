//! The binary: parse, init, exit code.
//!
//! Exit codes: 0 after a drain or a finished command; 1 when what was asked for failed; 2 for bad flags or a bad configuration, with one line on
//! standard error that says what to change.

use std::{
    error::Error,
    fs,
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    process::ExitCode,
};

use clap::Parser as _;
use runs_gateway::{
    app::App,
    config::{Cli, Command, Serve, ServeArgs},
    v1,
};
use tokio::{
    net::TcpListener,
    runtime,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => return bad_usage(error.to_string().trim_start_matches("error: ")),
    };
    match cli.command {
        Command::Serve(args) => serve(*args),
        Command::Proto { out } => match write_contract(&out) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&format!("{}: {error}", out.display())),
        },
    }
}

fn serve(args: ServeArgs) -> ExitCode {
    let config = match Serve::try_from(args) {
        Ok(config) => config,
        Err(error) => return bad_usage(&error.to_string()),
    };
    let filter = match EnvFilter::try_new(&config.log) {
        Ok(filter) => filter,
        Err(error) => return bad_usage(&format!("--log {}: {error}", config.log)),
    };
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    if io::stderr().is_terminal() {
        logs.init();
    } else {
        logs.json().init();
    }

    let mut runtime = runtime::Builder::new_multi_thread();
    if let Some(threads) = config.worker_threads {
        runtime.worker_threads(threads);
    }
    match runtime.enable_all().build().map_err(Into::into).and_then(|runtime| runtime.block_on(run(&config))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error.to_string()),
    }
}

async fn run(config: &Serve) -> Result<(), Box<dyn Error + Send + Sync>> {
    let app = App::new(config)?;
    let listener =
        TcpListener::bind(config.listen).await.map_err(|error| format!("cannot listen on {}: {error}", config.listen))?;
    // Whoever started the gateway on port 0 reads the port here.
    writeln!(io::stderr(), "grpc listening on {}", listener.local_addr()?)?;
    let shutdown = CancellationToken::new();
    let mut signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn({
        let shutdown = shutdown.clone();
        async move {
            for _ in 0..2 {
                tokio::select! {
                    _ = signals.0.recv() => {}
                    _ = signals.1.recv() => {}
                }
                if shutdown.is_cancelled() {
                    tracing::warn!("second signal: ending at once");
                    std::process::exit(0);
                }
                shutdown.cancel();
            }
        }
    });
    app.serve(listener, shutdown).await;
    Ok(())
}

/// Writes the contract's files below `out`, making folders where needed.
fn write_contract(out: &Path) -> io::Result<()> {
    for (path, text) in v1::FILES {
        let path = out.join(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, text)?;
    }
    Ok(())
}

/// One line about what to change. clap's usage and hints come after the first one.
fn bad_usage(message: &str) -> ExitCode {
    let mut lines = message.lines().map(str::trim).take_while(|line| !line.is_empty());
    eprintln!("runs-gateway: {}; see --help", lines.by_ref().collect::<Vec<_>>().join(" "));
    ExitCode::from(2)
}

fn failed(message: &str) -> ExitCode {
    eprintln!("runs-gateway: {message}");
    ExitCode::FAILURE
}
