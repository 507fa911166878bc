//! Where log lines go, and in which form: standard error, as text on a terminal and as JSON
//! elsewhere, unless told.
//!
//! JSON lines have the members of `tracing-subscriber`'s: `timestamp`, `level`, `fields`, `target`.
//! They are not written by it, since there is a line for every call, and its way (a serializer for
//! each line, dates from the civil calendar each time) costs four times as much.
//!
//! Lines are gathered for fifty milliseconds, or until there are many, and written by a thread of
//! their own: whoever reads the log slowly must not slow calls down. Not by `tracing-appender`,
//! which wakes its thread for every line. docs/performance.md has the numbers.
//!
//! Must hold: what was logged is written before the program ends ([`flush`]). If nobody reads,
//! lines are dropped above a MiB, and the log says how many; if whoever reads is gone, the gateway
//! goes on without.

use std::{
    fmt::{self, Write as _},
    io::{self, IsTerminal as _, Write as _},
    mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, SystemTime},
};

use clap::ValueEnum;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter,
    filter::ParseError,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// As text on a terminal, as JSON elsewhere.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How long a line waits for others.
const DELAY: Duration = Duration::from_millis(50);

/// As much as waits for nothing more, in bytes.
const ENOUGH: usize = MOST / 8;

/// As much as waits to be written, in bytes.
const MOST: usize = 1 << 20;

/// As much as is waited for at the end, if nobody reads.
const FLUSH: Duration = Duration::from_secs(1);

/// Writes what `filter` lets through to standard error from now on.
///
/// Fails if the filter cannot be understood.
pub fn init(filter: &str, format: LogFormat) -> Result<(), ParseError> {
    // h2 warns of each connection that breaks its limits; `server/connection.rs` says that once a
    // second. Whoever names h2 sees what it says.
    let quiet = if filter.contains("h2") || filter == "off" {
        String::new()
    } else {
        ",h2=error".to_owned()
    };
    let filter = EnvFilter::try_new(format!("{filter}{quiet}"))?;
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
    drop(
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(|| WAITING.write_out()),
    );
    if text {
        logs.init();
    } else {
        logs.event_format(Json).init();
    }
    Ok(())
}

/// Waits until all that was logged is written, or cannot be.
pub fn flush() {
    let waiting = WAITING.lock();
    drop(
        WAITING
            .written
            .wait_timeout_while(waiting, FLUSH, |waiting| {
                !waiting.text.is_empty() || waiting.writing
            }),
    );
}

static WAITING: Waiting = Waiting {
    lines: Mutex::new(Lines {
        text: Vec::new(),
        dropped: 0,
        writing: false,
    }),
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
        let before = waiting.text.len();
        waiting.text.extend_from_slice(line);
        let now = waiting.text.len();
        drop(waiting);
        if before == 0 || (before < ENOUGH && now >= ENOUGH) {
            self.logged.notify_one();
        }
    }

    /// Writes for ever.
    fn write_out(&self) {
        let mut lines = Vec::new();
        loop {
            let waiting = self
                .logged
                .wait_while(self.lock(), |waiting| waiting.text.is_empty());
            let waiting = waiting.unwrap_or_else(PoisonError::into_inner);
            let waiting = self
                .logged
                .wait_timeout_while(waiting, DELAY, |waiting| waiting.text.len() < ENOUGH);
            let dropped = {
                let (mut waiting, _) = waiting.unwrap_or_else(PoisonError::into_inner);
                waiting.writing = true;
                mem::swap(&mut waiting.text, &mut lines);
                mem::take(&mut waiting.dropped)
            };
            // One that fails is lost: there is nowhere to say so.
            drop(io::stderr().write_all(&lines));
            lines.clear();
            // Before it is said that all is written: whoever waits for that waits for this line,
            // too.
            if dropped > 0 {
                tracing::warn!(
                    lines = dropped,
                    "the log was not read in time: lines are missing"
                );
            }
            self.lock().writing = false;
            self.written.notify_all();
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

/// Formats a line as JSON.
#[derive(Debug, Clone, Copy)]
pub struct Json;

impl<S: Subscriber + for<'a> LookupSpan<'a>, N: for<'a> FormatFields<'a> + 'static>
    FormatEvent<S, N> for Json
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let now = humantime::format_rfc3339_micros(SystemTime::now());
        write!(
            out,
            r#"{{"timestamp":"{now}","level":"{}","fields":{{"#,
            metadata.level()
        )?;
        let mut fields = Fields {
            out,
            first: true,
            target: None,
            result: Ok(()),
        };
        event.record(&mut fields);
        fields.result?;
        fields.out.write_str(r#"},"target":"#)?;
        text(
            &mut fields.out,
            fields.target.as_deref().unwrap_or(metadata.target()),
        )?;
        fields.out.write_str("}\n")
    }
}

/// The members of `fields`.
struct Fields<'a> {
    out: Writer<'a>,
    first: bool,
    /// Where a line of the `log` crate's comes from; its other fields of that kind are left out.
    target: Option<String>,
    result: fmt::Result,
}

impl Fields<'_> {
    fn member(&mut self, field: &Field, write: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        if self.result.is_err() || field.name().starts_with("log.") {
            return;
        }
        self.result = self.name(field.name()).and_then(|()| write(&mut self.out));
    }

    fn name(&mut self, name: &str) -> fmt::Result {
        self.out.write_str(if mem::take(&mut self.first) {
            "\""
        } else {
            ",\""
        })?;
        self.out.write_str(name)?;
        self.out.write_str("\":")
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.member(field, |out| {
            if value.is_finite() {
                write!(out, "{value}")
            } else {
                out.write_str("null")
            }
        });
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.member(field, |out| write!(out, "{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.member(field, |out| write!(out, "{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.member(field, |out| write!(out, "{value}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "log.target" {
            self.target = Some(value.to_owned());
        }
        self.member(field, |out| text(out, value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.member(field, |out| {
            out.write_char('"')?;
            write!(Escaped(out), "{value:?}")?;
            out.write_char('"')
        });
    }
}

/// A string as JSON.
fn text(out: &mut Writer<'_>, text: &str) -> fmt::Result {
    out.write_char('"')?;
    Escaped(out).write_str(text)?;
    out.write_char('"')
}

/// The inside of a JSON string.
struct Escaped<'a, 'b>(&'a mut Writer<'b>);

impl fmt::Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let special = |byte: u8| matches!(byte, b'"' | b'\\' | 0..0x20);
        // Almost always there is none, which is quicker to see without stopping at the first.
        if !text
            .bytes()
            .fold(false, |found, byte| found | special(byte))
        {
            return self.0.write_str(text);
        }
        let mut plain = 0;
        for (at, byte) in text.bytes().enumerate().filter(|(_, byte)| special(*byte)) {
            self.0.write_str(&text[plain..at])?;
            match byte {
                b'"' | b'\\' => write!(self.0, "\\{}", char::from(byte))?,
                _ => write!(self.0, "\\u{byte:04x}")?,
            }
            plain = at + 1;
        }
        self.0.write_str(&text[plain..])
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};

    use super::*;

    /// Keeps what is written.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_one_object_whatever_is_said() {
        let kept = Kept::default();
        let writer = kept.clone();
        let logs = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .event_format(Json)
            .finish();
        let all: String = (0..0x250).filter_map(char::from_u32).collect();
        tracing::subscriber::with_default(logs, || {
            tracing::warn!(text = &*all, debug = ?all, half = 0.5, not = f64::NAN, none = None::<u64>, left = -1, right = true, "said: {all}");
        });
        let lines = String::from_utf8(kept.0.lock().expect("no panic").clone()).expect("UTF-8");
        assert_eq!(lines.matches('\n').count(), 1, "{lines}");
        let line: Value = serde_json::from_str(&lines).expect("JSON");
        let fields = json!({
            "text": all, "debug": format!("{all:?}"), "half": 0.5, "not": null, "left": -1, "right": true, "message": format!("said: {all}"),
        });
        assert_eq!((&line["fields"], &line["level"]), (&fields, &json!("WARN")));
        assert_eq!(line["target"], module_path!());
        assert!(
            line["timestamp"]
                .as_str()
                .is_some_and(|time| humantime::parse_rfc3339(time).is_ok()),
            "{line}"
        );
    }
}
