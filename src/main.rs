//! The binary: parse, init, exit code.
//!
//! Exit codes: 0 after a drain or a finished command; 1 when what was asked for failed; 2 for bad
//! flags or a bad configuration, with one line on standard error that says what to change.

use std::{
    error::Error,
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    path::Path,
    process::ExitCode,
    time::Duration,
};

use clap::error::ErrorKind;
use runs_gateway::{
    admin,
    app::App,
    config::{self, Cli, Command, Dev, Invalid, Reader, Serve},
    demo, dev, healthcheck, package_files, reloadable,
    telemetry::{LogFormat, log},
    terminal, v1,
};
use tokio::{
    net::TcpListener,
    runtime,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::filter::ParseError;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Tasks that run before sockets and timers are looked at again, as long as there are tasks to run.
/// An event takes three (the upstream's connection, the call, the caller's connection): after
/// tokio's 61 a system call would be made for every twenty events.
const EVENT_INTERVAL: u32 = 512;

/// Sockets that are taken up at a time, before what they have brought is done. With tokio's 1,024 a
/// thousand calls go through each of their steps together, and the memory of each has left the
/// cache when its turn comes.
const EVENTS: usize = 32;

/// As long as threads that are blocked are waited for at the end.
const LEFT_OVER: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = match Cli::from_process() {
        Ok(cli) => cli,
        Err(error)
            if !error.use_stderr()
                || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
            error.exit()
        }
        Err(error) => return bad_usage(error.to_string().trim_start_matches("error: ")),
    };
    let checked = match cli.command {
        Command::Serve(_) | Command::Dev(_) => config::check_environment(Reader::Gateway),
        // It works whatever is set.
        Command::Demo(_) => Ok(()),
        _ => {
            if let Err(error) = config::check_environment(Reader::Other) {
                eprintln!("runs-gateway: warning: {error}");
            }
            Ok(())
        }
    };
    if let Err(error) = checked {
        return bad_usage(&error.to_string());
    }
    let done = match cli.command {
        Command::Serve(args) => match (args.check, Serve::try_from(*args)) {
            (true, Ok(config)) => start("error", LogFormat::Auto, Some(1), check(&config)),
            (false, Ok(config)) => {
                let (telemetry, threads) = (config.telemetry.clone(), config.worker_threads);
                start(&telemetry.log, telemetry.log_format, threads, serve(config))
            }
            (_, Err(error)) => return bad_usage(&error.to_string()),
        },
        Command::Dev(args) => {
            let config = Dev::try_from(*args).and_then(|config| Ok((config.telemetry()?, config)));
            match config {
                Ok((telemetry, config)) => {
                    let threads = config.worker_threads();
                    start(&telemetry.log, telemetry.log_format, threads, dev(config))
                }
                Err(error) => return bad_usage(&error.to_string()),
            }
        }
        Command::Demo(args) => match Dev::try_from(*args) {
            Ok(config) => start("warn", LogFormat::Auto, None, demo::run(config)),
            Err(error) => return bad_usage(&error.to_string()),
        },
        Command::Run(args) => return show(terminal::run(args)),
        Command::Watch(args) => return show(terminal::watch(args)),
        Command::Healthcheck(args) => {
            start("warn", LogFormat::Auto, Some(1), healthcheck::run(args))
        }
        Command::Proto { out } => {
            write_contract(&out).map_err(|error| format!("{}: {error}", out.display()).into())
        }
        Command::PackageFiles { out } => package_files::write(config::command_line(), &out)
            .map_err(|error| format!("{}: {error}", out.display()).into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&*error),
    }
}

fn failed(error: &(dyn Error + Send + Sync + 'static)) -> ExitCode {
    if error.is::<ParseError>() {
        return bad_usage(&format!("--log: {error}"));
    }
    if error.is::<Invalid>() {
        return bad_usage(&error.to_string());
    }
    eprintln!("runs-gateway: {error}");
    ExitCode::FAILURE
}

/// Shows a run on the terminal; its end is the exit code.
fn show(work: impl Future<Output = Result<terminal::Ended, Failure>>) -> ExitCode {
    match start("error", LogFormat::Auto, Some(1), work) {
        Ok(ended) => ExitCode::from(ended.exit_code()),
        Err(error) => failed(&*error),
    }
}

type Failure = Box<dyn Error + Send + Sync>;

/// Sets up logs and threads, and runs `work` to its end.
fn start<T>(
    filter: &str,
    format: LogFormat,
    threads: Option<usize>,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    log::init(filter, format)?;
    config::log_old_names();
    let mut builder = match threads {
        // Alone it has nobody to share work with, and nothing to pay for that.
        Some(1) => runtime::Builder::new_current_thread(),
        Some(threads) => {
            let mut builder = runtime::Builder::new_multi_thread();
            builder.worker_threads(threads);
            builder
        }
        None => runtime::Builder::new_multi_thread(),
    };
    let runtime = builder
        .event_interval(EVENT_INTERVAL)
        .max_io_events_per_tick(EVENTS)
        .enable_all()
        .build()?;
    let done = runtime.block_on(work);
    // Looking up a name, or reading a file of a volume that hangs, cannot be cut short, and is
    // nothing to wait for.
    runtime.shutdown_timeout(LEFT_OVER);
    log::flush();
    done
}

/// Says that the configuration and the files that it names can be run; nothing listens.
async fn check(config: &Serve) -> Result<(), Failure> {
    println!("ok: {}", App::new(config).await?.describe(config));
    Ok(())
}

async fn serve(config: Serve) -> Result<(), Failure> {
    reload_on_hangup()?;
    // From now on a signal to end is heeded, and not only once others can read the address.
    let shutdown = shutdown()?;
    let app = App::new(&config).await?;
    let described = app.describe(&config);
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|error| format!("cannot listen on {} (--listen): {error}", config.listen))?;
    let admin = admin::listen(config.telemetry.admin).await?;
    // Whoever started the gateway on port 0 reads the port here.
    writeln!(io::stderr(), "grpc listening on {}", listener.local_addr()?)?;
    let admin_address = admin.as_ref().map(TcpListener::local_addr).transpose()?;
    say_admin(admin_address)?;
    log_start(listener.local_addr()?, admin_address, &described);
    if let Some(notice) = config.notice {
        tracing::warn!("{notice}");
    }
    app.serve(listener, admin, shutdown).await;
    Ok(())
}

async fn dev(config: Dev) -> Result<(), Failure> {
    reload_on_hangup()?;
    let answers = if config.model.is_some() {
        "answers come from the model at --model-url"
    } else {
        "answers come from a built-in model, not from an AI"
    };
    let dev = dev::Dev::start(config, shutdown()?).await?;
    writeln!(io::stderr(), "grpc listening on {}", dev.grpc)?;
    writeln!(
        io::stderr(),
        "rest listening on {} (the embedded Runs API: {answers})",
        dev.rest
    )?;
    say_admin(dev.admin)?;
    log_start(dev.grpc, dev.admin, &dev.described);
    dev.ended().await;
    Ok(())
}

/// Logs what was started.
fn log_start(grpc: SocketAddr, admin: Option<SocketAddr>, described: &str) {
    let (version, set) = (env!("CARGO_PKG_VERSION"), config::settings());
    let set = if set.is_empty() { "nothing" } else { set };
    let admin = admin.map(tracing::field::display);
    tracing::info!(version, %grpc, admin, "serving: {described}; set: {set}");
}

fn say_admin(address: Option<SocketAddr>) -> io::Result<()> {
    address.map_or(Ok(()), |address| {
        writeln!(io::stderr(), "admin listening on {address}")
    })
}

/// Has files read again at each SIGHUP, whose default is to end the process without a drain.
fn reload_on_hangup() -> io::Result<()> {
    let mut hangups = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            tracing::info!("SIGHUP: looking at keys, certificates and tokens again");
            reloadable::reload();
        }
    });
    Ok(())
}

/// Cancelled by the first signal to end. The second one ends the process at once.
fn shutdown() -> io::Result<CancellationToken> {
    let shutdown = CancellationToken::new();
    let mut signals = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    tokio::spawn({
        let shutdown = shutdown.clone();
        async move {
            loop {
                tokio::select! {
                    _ = signals.0.recv() => {}
                    _ = signals.1.recv() => {}
                }
                if shutdown.is_cancelled() {
                    tracing::warn!("second signal: ending at once");
                    log::flush();
                    std::process::exit(0);
                }
                shutdown.cancel();
            }
        }
    });
    Ok(shutdown)
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

/// One line about what to change: clap's message and its tips, without its usage.
fn bad_usage(message: &str) -> ExitCode {
    let message = message.split("\n\nUsage:").next().unwrap_or(message);
    let lines: Vec<_> = message
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("For more information"))
        .collect();
    eprintln!("runs-gateway: {}; see --help", lines.join(" "));
    ExitCode::from(2)
}
