//! What the gateway tells of itself while it works: metrics, traces, one log line per call.
//!
//! | file | idea |
//! |---|---|
//! | `metrics.rs` | every metric: its name, its labels, its buckets |
//! | `methods.rs` | the methods that are served, each with its metrics |
//! | `tokens.rs` | the tokens that runs used |
//! | `call.rs` | one call, as its log line, its metrics and its span see it |
//! | `upstream_request.rs` | one upstream request, likewise |
//! | `trouble.rs` | what whoever runs the gateway has to mend |
//! | `run_metrics.rs` | how runs end and what they used, each run once |
//! | `usage.rs` | what each caller used |
//! | `trace.rs` | spans, and their export by OTLP |
//! | `log.rs` | where log lines go, and in which form |
//! | `once.rs` | lines that peers can cause: one a second |
//!
//! Must hold: nothing that a caller or an upstream chooses freely becomes a label without a bound.
//! No prompt, output, key, body or URL is in any of it: ids, models, codes and counts alone. What
//! nobody looks at costs next to nothing: without an exporter there are no spans, and a counter is
//! one atomic addition.
//!
//! Why not `tracing` spans for traces: a span that is not sampled would cost as much as one that
//! is, and a call's span has to live in its response body, not in a scope. Why not a global
//! registry: several gateways live in one process in tests, and each counts for itself.

mod call;
pub mod log;
mod make;
mod methods;
mod metrics;
mod once;
mod run_metrics;
mod tokens;
mod trace;
mod trouble;
mod upstream_request;
mod usage;

use std::{fmt, sync::Arc};

pub(crate) use self::trouble::in_words_of_the_model;
pub use self::{
    call::Call,
    log::LogFormat,
    metrics::{CreateMetrics, EventLogMetrics, Metrics, PROMETHEUS_TEXT},
    once::OncePerSecond,
    trace::{OtlpProtocol, Tracer, Traces},
    upstream_request::UpstreamRequest,
    usage::{Callers, MAX_NAMED_CALLERS},
};
use crate::v1::Run;

/// All that one gateway tells. Cheap to clone.
#[derive(Clone)]
pub struct Telemetry(Arc<Inner>);

struct Inner {
    metrics: Metrics,
    tracer: Tracer,
    outcomes: run_metrics::RunMetrics,
    troubles: trouble::Troubles,
    /// The upstream is the model behind the embedded API.
    is_model: bool,
    settings: Settings,
}

/// What is told, and under which names.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Lines of calls have the ids of threads and runs and the callers' names.
    pub log_ids: bool,
    /// Metrics have the names and labels of the release before.
    pub legacy_metrics: bool,
    /// Whose models run: `gen_ai.provider.name`.
    pub provider: String,
}

impl Telemetry {
    /// Counts from zero, and traces by `tracer`.
    pub fn new(tracer: Tracer, settings: Settings) -> Self {
        Self::about(false, tracer, settings)
    }

    /// For requests to the model behind the embedded API: what has to be mended is said in its
    /// words. Nothing is traced, and no ids are logged.
    pub(crate) fn of_model() -> Self {
        Self::about(true, Tracer::off(), Settings::default())
    }

    fn about(is_model: bool, tracer: Tracer, settings: Settings) -> Self {
        Self(Arc::new(Inner {
            metrics: Metrics::new(&settings),
            tracer,
            outcomes: run_metrics::RunMetrics::default(),
            troubles: trouble::Troubles::default(),
            is_model,
            settings,
        }))
    }

    /// The metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Notes a run as the upstream showed it. How a run ended and the tokens it used are counted
    /// once, whoever sees it and how often.
    pub fn saw(&self, run: &Run) {
        self.0.outcomes.saw(run, &self.0.metrics);
    }

    /// Sends what has not been exported yet. Blocks for a few seconds at most.
    pub fn flush(&self) {
        self.0.tracer.shutdown();
    }
}

impl Default for Telemetry {
    /// Counts from zero, does not trace, and logs no ids.
    fn default() -> Self {
        Self::new(Tracer::off(), Settings::default())
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Telemetry").finish_non_exhaustive()
    }
}
