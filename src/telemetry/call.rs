//! One call, as its log line, its metrics and its span see it.
//!
//! Must hold: a call has one log line, at its end, which says all that became known of it: an
//! operator who has a caller's trace id or the upstream's request id finds the other there, with
//! the reason. Thread, run and caller are in it with `--log-ids` only; the error of a stream that
//! was interrupted names its run in any case.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use http::HeaderMap;
use tokio::time::Instant;
use tonic::Code;

use super::{
    Telemetry,
    methods::{Method, code_name},
    trace,
    usage::CallerUsage,
};
use crate::{
    error::Error,
    v1::{Run, RunEventType},
};

/// As much of a path that is not served as is logged, in characters.
const MAX_PATH: usize = 100;

/// As much of an id or a name as is logged, in characters.
const MAX_ID: usize = 200;

fn shortened(text: &str) -> String {
    text.chars().take(MAX_ID).collect()
}

/// A call that is open. Cheap to clone. The default stands for none, such as a poller's own
/// requests: what is recorded of it is lost.
#[derive(Clone, Default)]
pub struct Call(Option<Arc<OpenCall>>);

struct OpenCall {
    telemetry: Telemetry,
    method: Arc<Method>,
    /// What was asked for, if it is not served.
    unknown: Option<String>,
    began: Instant,
    span: trace::Server,
    notes: Mutex<Notes>,
    /// What its caller used, once that is known by name.
    usage: OnceLock<Arc<CallerUsage>>,
    /// Events sent, but for heartbeats. Whoever sends them is the only one that writes it.
    events: AtomicU64,
}

/// What became known of a call.
#[derive(Default)]
struct Notes {
    /// What it is about and whose it is, if lines of calls say so.
    ids: Ids,
    /// Why it failed, in the log's words.
    error: Option<String>,
    /// The upstream's id of the last request made for it.
    upstream_request_id: Option<String>,
}

#[derive(Default)]
struct Ids {
    thread: Option<String>,
    run: Option<String>,
    caller: Option<String>,
}

impl Telemetry {
    /// A call begins: `path` is what was asked for, `headers` may have a trace context.
    pub fn call(&self, path: &str, headers: &HeaderMap) -> Call {
        let method = self.metrics().methods.at(path);
        let unknown: Option<String> = method.is_err().then(|| {
            path.trim_start_matches('/')
                .chars()
                .take(MAX_PATH)
                .collect()
        });
        let method = Arc::clone(method.unwrap_or_else(|other| other));
        method.active.inc();
        let span = self.0.tracer.server(&method, unknown.as_deref(), headers);
        Call(Some(Arc::new(OpenCall {
            telemetry: self.clone(),
            method,
            unknown,
            began: Instant::now(),
            span,
            notes: Mutex::default(),
            usage: OnceLock::new(),
            events: AtomicU64::new(0),
        })))
    }
}

impl Call {
    /// Whether its answer may be a stream.
    pub fn streams(&self) -> bool {
        self.0.as_ref().is_none_or(|open| open.method.streams)
    }

    /// Notes what `names` gives, if lines of calls say it.
    fn note_ids(&self, names: impl FnOnce(&mut Ids)) {
        if let Some(open) = self
            .0
            .as_ref()
            .filter(|open| open.telemetry.0.settings.log_ids)
        {
            names(&mut open.notes().ids);
        }
    }

    /// The caller, by its name; empty, if its certificate has none.
    pub fn by(&self, caller: &str) {
        if let Some(open) = &self.0 {
            let usage = open.usage.get_or_init(|| {
                let usage = open.telemetry.metrics().callers.of(caller);
                if open.method.streams {
                    usage.live_streams.inc();
                }
                usage
            });
            usage.calls.inc();
        }
        if !caller.is_empty() {
            self.note_ids(|ids| ids.caller = Some(shortened(caller)));
        }
    }

    /// The thread and the run that it is about; empty, if they are not known.
    pub fn about(&self, thread_id: &str, run_id: &str) {
        self.note_ids(|ids| {
            for (id, known) in [(&mut ids.thread, thread_id), (&mut ids.run, run_id)] {
                if !known.is_empty() && id.as_deref() != Some(known) {
                    *id = Some(shortened(known));
                }
            }
        });
    }

    /// The error that ends it.
    pub fn failed(&self, error: &Error) {
        let Some(open) = &self.0 else { return };
        if let Some(what) = error.overloaded() {
            open.telemetry
                .metrics()
                .shed
                .with_label_values(&[what])
                .inc();
            if let Some(usage) = open.usage.get() {
                usage.refused.inc();
            }
        }
        open.notes().error = Some(error.log().to_string());
    }

    /// The upstream answered a request that was made for it.
    pub fn answered(&self, upstream_request_id: Option<&str>) {
        if let (Some(open), Some(id)) = (&self.0, upstream_request_id) {
            open.notes().upstream_request_id = Some(id.to_owned());
        }
    }

    /// An event is sent; if it tells of a run, of this one.
    pub fn sent(&self, kind: RunEventType, run: Option<&Run>) {
        let Some(open) = &self.0 else { return };
        let metrics = open.telemetry.metrics();
        metrics.sent(kind);
        // A sign of life is nothing that a caller waits for.
        if kind == RunEventType::Heartbeat {
            return;
        }
        let before = open.events.load(Ordering::Relaxed);
        open.events.store(before + 1, Ordering::Relaxed);
        if before == 0 {
            metrics.first_event(&open.method.label, open.began.elapsed().as_secs_f64());
        }
        if let Some(run) = run {
            open.telemetry.saw(run);
            self.saw(run);
        }
    }

    /// The run that it is about, as it is now.
    pub fn saw(&self, run: &Run) {
        if let Some(open) = &self.0 {
            open.span.saw(run, &open.telemetry.0.settings.provider);
            if let Some(usage) = open.usage.get() {
                let Telemetry(inner) = &open.telemetry;
                inner.outcomes.shown(run, &usage.label, &inner.metrics);
            }
        }
        self.about(&run.thread_id, &run.id);
    }

    /// It is over. Said once.
    pub fn ended(&self, code: Code) {
        let Some(open) = &self.0 else { return };
        let duration = open.began.elapsed();
        open.method.active.dec();
        if let Some(usage) = open.usage.get().filter(|_| open.method.streams) {
            usage.live_streams.dec();
        }
        open.method.duration(code).observe(duration.as_secs_f64());
        let method = open.unknown.as_ref().unwrap_or(&open.method.name);
        let notes = open.notes();
        let ids = &notes.ids;
        let events = open.events.load(Ordering::Relaxed);
        open.span.ended(code, notes.error.as_deref());
        tracing::info!(
            rpc.method = method,
            code = code_name(code),
            duration_ms = duration.as_secs_f64() * 1000.0,
            events = (events > 0).then_some(events),
            upstream_request_id = notes.upstream_request_id,
            trace_id = open.span.trace_id(),
            thread_id = ids.thread,
            run_id = ids.run,
            caller = ids.caller,
            error = notes.error,
            "call ended"
        );
    }

    /// The span of which an upstream request's is a child.
    pub(super) fn span(&self) -> Option<&trace::Server> {
        self.0.as_ref().map(|open| &open.span)
    }
}

impl OpenCall {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Call")
            .field(&self.0.as_ref().map(|open| &open.method))
            .finish()
    }
}
