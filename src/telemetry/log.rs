//! Where log lines go, and in which form: standard error, as text on a terminal and as JSON elsewhere, unless told.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::{EnvFilter, filter::ParseError};

use crate::config::LogFormat;

/// Writes what `filter` lets through to standard error from now on.
///
/// Fails if the filter cannot be understood.
pub fn init(filter: &str, format: LogFormat) -> Result<(), ParseError> {
    let filter = EnvFilter::try_new(filter)?;
    let terminal = io::stderr().is_terminal();
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(terminal)
        // If whoever reads the log is gone, the gateway goes on without: telling standard error of it would panic, in the middle of a call.
        .log_internal_errors(false);
    let text = match format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    if text {
        logs.init();
    } else {
        logs.json().init();
    }
    Ok(())
}
