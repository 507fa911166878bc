//! Runs on a terminal: `runs-gateway run` and `runs-gateway watch`, for whoever wants to look at a
//! gateway without writing a client.
//!
//! | file | what it is |
//! |---|---|
//! | `gateway.rs` | the calls, with the caller's credential |
//! | `session.rs` | one run, from its events to the screen; Ctrl-C |
//! | `view.rs` | what events say, in words |
//! | `screen.rs` | what stands on the terminal, or goes into files |
//! | `ended.rs` | how it ended, as an exit code |
//! | `printable.rs` | text of others, without control characters |
//!
//! Must hold:
//!
//! - No text comes twice, however often a stream breaks.
//! - What others wrote reaches the terminal only as `printable` makes it.
//! - Nothing is created twice: what cannot be resumed is an error that says so.
//! - What is made for a question is removed once its run is over. While the run goes on it is left,
//!   and named.

mod ended;
mod gateway;
mod printable;
mod screen;
mod session;
mod view;

pub use self::ended::Ended;
use self::{ended::Failure, gateway::Gateway, session::Session, view::Timing};
use crate::config::{RunArgs, WatchArgs};

/// Asks a question and shows the run that answers it.
///
/// # Errors
///
/// What could not be done, as one line: no connection, a refusal, a stream that could not be
/// resumed.
pub async fn run(args: RunArgs) -> Result<Ended, Failure> {
    let gateway = Gateway::connect(&args.caller).await?;
    let mut session = Session::new(&gateway, &args.caller, Timing::Command)?;
    let stopped = session.ask(args.question, args.assistant, args.model).await;
    session.end(stopped)
}

/// Shows a run that somebody started, until it is over.
///
/// # Errors
///
/// As for [`run`].
pub async fn watch(args: WatchArgs) -> Result<Ended, Failure> {
    let gateway = Gateway::connect(&args.caller).await?;
    let mut session = Session::new(&gateway, &args.caller, Timing::Run)?;
    let stopped = session.watch(args.thread_id, args.run_id).await;
    session.end(stopped)
}
