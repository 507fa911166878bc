//! Where log lines go, and in which form: standard error, as text on a terminal and as JSON elsewhere, unless told.
//!
//! Lines are gathered for ten milliseconds and written by a thread of their own: a write for every call costs as much as its JSON, and whoever reads the log
//! slowly must not slow calls down.
//!
//! Must hold: what was logged is written before the program ends ([`flush`]). If nobody reads, lines are dropped above a MiB, and the log says
//! how many; if whoever reads is gone, the gateway goes on without.

use std::{
    io::{self, IsTerminal as _, Write as _},
    mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tracing_subscriber::{EnvFilter, filter::ParseError};

use crate::config::LogFormat;

/// How long a line waits for others.
const DELAY: Duration = Duration::from_millis(10);

/// As much as waits to be written, in bytes.
const MOST: usize = 1 << 20;

/// As much as is waited for at the end, if nobody reads.
const FLUSH: Duration = Duration::from_secs(1);

/// Writes what `filter` lets through to standard error from now on.
///
/// Fails if the filter cannot be understood.
pub fn init(filter: &str, format: LogFormat) -> Result<(), ParseError> {
    let filter = EnvFilter::try_new(filter)?;
    let terminal = io::stderr().is_terminal();
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Line)
        .with_ansi(terminal)
        // Telling standard error that standard error is gone would panic, in the middle of a call.
        .log_internal_errors(false);
    let text = match format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    // Without a thread there are no lines, which is no reason not to serve.
    drop(thread::Builder::new().name("log".to_owned()).spawn(|| WAITING.write_out()));
    if text {
        logs.init();
    } else {
        logs.json().init();
    }
    Ok(())
}

/// Waits until all that was logged is written, or cannot be.
pub fn flush() {
    let waiting = WAITING.lock();
    drop(WAITING.written.wait_timeout_while(waiting, FLUSH, |waiting| !waiting.text.is_empty() || waiting.writing));
}

static WAITING: Waiting = Waiting {
    lines: Mutex::new(Lines { text: Vec::new(), dropped: 0, writing: false }),
    logged: Condvar::new(),
    written: Condvar::new(),
};

/// What waits to be written. There is one standard error, and so one of this.
struct Waiting {
    lines: Mutex<Lines>,
    logged: Condvar,
    written: Condvar,
}

struct Lines {
    text: Vec<u8>,
    /// Lines for which there was no room.
    dropped: u64,
    writing: bool,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, line: &[u8]) {
        let mut waiting = self.lock();
        if waiting.text.len() + line.len() > MOST {
            waiting.dropped += 1;
            return;
        }
        let first = waiting.text.is_empty();
        waiting.text.extend_from_slice(line);
        drop(waiting);
        if first {
            self.logged.notify_one();
        }
    }

    /// Writes for ever.
    fn write_out(&self) {
        let mut lines = Vec::new();
        loop {
            let waiting = self.logged.wait_while(self.lock(), |waiting| waiting.text.is_empty());
            drop(waiting);
            thread::sleep(DELAY);
            let dropped = {
                let mut waiting = self.lock();
                waiting.writing = true;
                mem::swap(&mut waiting.text, &mut lines);
                mem::take(&mut waiting.dropped)
            };
            // One that fails is lost: there is nowhere to say so.
            drop(io::stderr().write_all(&lines));
            lines.clear();
            self.lock().writing = false;
            self.written.notify_all();
            if dropped > 0 {
                tracing::warn!(lines = dropped, "the log was not read in time: lines are missing");
            }
        }
    }
}

/// One line. It is given as a whole.
struct Line;

impl io::Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        WAITING.add(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
