//! Every metric: its name, its labels, its buckets.
//!
//! Names and labels are those of OpenTelemetry's semantic conventions (rpc and http of 1.45,
//! `gen_ai` of 0.1.0), written as Prometheus writes them, where there are such; the gateway's own
//! begin with `runs_gateway_`. A test holds them to a list; the dashboard and the alerts in
//! `deploy/` are held to them by a check.
//!
//! Must hold: label values come from sets that are known beforehand (the contract's methods, gRPC
//! codes, REST routes, HTTP statuses) or are bounded here ([`bounded`], [`Models`]).

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use prometheus::{
    Encoder as _, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Registry, TextEncoder,
};

use super::{
    Callers, Settings,
    make::{Make, OTHER, SECONDS},
    methods::Methods,
    tokens::TokenMetrics,
};
use crate::v1::{Run, RunEventType};

/// The content type of [`Metrics::render`].
pub const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// As many models as have a label of their own. Upstreams own their names; there are rarely more
/// than some dozens.
const MODELS: usize = 100;

/// Codes of `last_error` that the schema names.
const RUN_ERRORS: [&str; 3] = ["server_error", "rate_limit_exceeded", "invalid_prompt"];

/// Types of events have numbers below this one.
const EVENT_TYPES: i32 = 128;

/// What somebody has to mend (`trouble.rs`).
pub(super) const TROUBLES: [&str; 5] = [
    "gateway_key_rejected",
    "list_unread",
    "quota_used_up",
    "upstream_unreachable",
    "upstream_unusable",
];

/// The metrics of one gateway.
pub struct Metrics {
    registry: Registry,
    /// The methods that are served.
    pub(super) methods: Methods,
    pub(super) requests: HistogramVec,
    /// Upstream requests under way.
    pub(super) requests_active: IntGauge,
    /// Upstream requests that wait for a place.
    pub queued: IntGauge,
    pub(super) retries: IntCounterVec,
    pub(super) shed: IntCounterVec,
    /// Connections open.
    pub connections: IntGauge,
    /// Bytes that may still be held for callers.
    pub bytes_left: IntGauge,
    /// By the number of their type.
    events: Vec<Option<IntCounter>>,
    first_event: HistogramVec,
    /// Upstream streams that ended before the run's last event and `done`.
    pub streams_cut: IntCounter,
    /// Runs polled.
    pub pollers: IntGauge,
    /// Those who watch them.
    pub watchers: IntGauge,
    /// The event log.
    pub event_log: EventLogMetrics,
    /// Creates that may be repeated, and creates that wait.
    pub creates: CreateMetrics,
    /// Troubles that somebody has to mend, by what they are.
    pub(super) troubles: IntCounterVec,
    /// Calls of which headers were taken off that only a mesh's proxies may set.
    pub mesh_headers_stripped: IntCounter,
    handshakes_failed: IntCounterVec,
    reload_failing: IntGaugeVec,
    certificate_expiry: IntGaugeVec,
    /// When the upstream key that a command printed expires, in Unix seconds.
    pub upstream_key_expiry: IntGauge,
    runs_ended: IntCounterVec,
    tokens: TokenMetrics,
    models: Models,
    /// What each caller used.
    pub callers: Callers,
}

/// What the event log does. Cheap to clone: clones count together.
#[derive(Debug, Clone)]
pub struct EventLogMetrics {
    /// Events that were recorded.
    pub appended: IntCounter,
    /// Events that were read from the log for a caller.
    pub delivered: IntCounter,
    /// Runs that this replica went on with after their writer was gone.
    pub takeovers: IntCounter,
    /// Times that a stream, a new one or one that is resumed, went on without the log.
    pub failed: IntCounter,
    /// Resumable streams whose events were not recorded, from some event on.
    pub unrecorded: IntCounter,
    /// Entries that were dropped before their time because of a limit.
    pub trimmed: IntCounter,
    /// What logs take in this replica's memory, in bytes.
    pub bytes: IntGauge,
    /// Time of an append.
    pub append_seconds: Histogram,
}

impl EventLogMetrics {
    fn new(new: &Make<'_>) -> Self {
        Self {
            appended: new.counter(
                "runs_gateway_event_log_appended_total",
                "Events that were recorded.",
            ),
            delivered: new.counter(
                "runs_gateway_event_log_delivered_total",
                "Events that were sent to callers from the event log.",
            ),
            takeovers: new.counter(
                "runs_gateway_event_log_takeovers_total",
                "Runs that this replica went on with after their writer was gone.",
            ),
            failed: new.counter(
                "runs_gateway_event_log_failures_total",
                "Times that a stream, a new one or one that is resumed, went on without the event log.",
            ),
            unrecorded: new.counter(
                "runs_gateway_event_log_unrecorded_streams_total",
                "Resumable streams whose events were not recorded, from some event on.",
            ),
            trimmed: new.counter(
                "runs_gateway_event_log_trimmed_total",
                "Entries that were dropped before their time because of a limit.",
            ),
            bytes: new.gauge(
                "runs_gateway_event_log_bytes",
                "Bytes that logs take in this replica's memory.",
            ),
            append_seconds: new.histogram(
                "runs_gateway_event_log_append_seconds",
                "Time of an append to the event log.",
                SECONDS,
            ),
        }
    }
}

impl Default for EventLogMetrics {
    /// In a registry that nobody reads.
    fn default() -> Self {
        Self::new(&Make(&Registry::new()))
    }
}

/// Creates with a `request_id`, and creates on busy threads. Cheap to clone: clones count together.
#[derive(Debug, Clone)]
pub struct CreateMetrics {
    /// Calls that joined a create that was under way.
    pub joined: IntCounter,
    /// Calls whose create was made before.
    pub repeated: IntCounter,
    /// Creates whose outcome was not known, and that were found.
    pub found: IntCounter,
    /// Creates whose outcome is not known: they were looked for in vain.
    pub unsettled: IntCounter,
    /// Times that the store did not say what other replicas do.
    pub store_failed: IntCounter,
    /// Creates that wait for a thread's active run.
    pub waiting: IntGauge,
    /// Creates that have waited for a thread's active run, those that still do among them.
    pub waited: IntCounter,
}

impl CreateMetrics {
    fn new(new: &Make<'_>) -> Self {
        let outcomes = new.counters(
            "runs_gateway_request_ids_total",
            "Calls with a request_id that made nothing: they joined a create, repeated one, found what \
             was made when the answer was lost, or found nothing and left it open (unsettled).",
            &["outcome"],
        );
        let outcome = |name: &str| outcomes.with_label_values(&[name]);
        Self {
            joined: outcome("joined"),
            repeated: outcome("repeated"),
            found: outcome("found"),
            unsettled: outcome("unsettled"),
            store_failed: new.counter(
                "runs_gateway_request_id_store_failures_total",
                "Times that a create with a request_id went on without knowing of other replicas.",
            ),
            waiting: new.gauge(
                "runs_gateway_waiting_creates",
                "Creates that wait for a thread's active run.",
            ),
            waited: new.counter(
                "runs_gateway_waited_creates_total",
                "Creates that have waited for a thread's active run, those that still do among them.",
            ),
        }
    }
}

impl Metrics {
    /// All of them at zero, in a registry of their own.
    ///
    /// # Panics
    ///
    /// If two metrics have one name, or the contract that this program was built with is malformed.
    pub(super) fn new(settings: &Settings) -> Self {
        let registry = Registry::new();
        let new = Make(&registry);
        let methods = Methods::new(&new, settings.legacy_metrics);
        let events = new.counters(
            "runs_gateway_events_total",
            "Events sent to callers.",
            &["type"],
        );
        new.process();
        let troubles = new.counters(
            "runs_gateway_troubles_total",
            "What somebody has to mend, each as often as it was met.",
            &["what"],
        );
        // There from the start, so that an increase from nothing is seen.
        for what in TROUBLES {
            troubles.with_label_values(&[what]);
        }
        Self {
            methods,
            requests: new.histograms(
                "http_client_request_duration_seconds",
                "Time of an upstream request, to its answer's last byte; of an event stream, to its head.",
                &["http_request_method", "url_template", "http_response_status_code", "error_type"],
                SECONDS,
            ),
            requests_active: new.gauge("http_client_active_requests", "Upstream requests under way, event streams among them."),
            queued: new.gauge("runs_gateway_upstream_queue", "Upstream requests that wait for a place."),
            retries: new.counters("runs_gateway_retries_total", "Upstream requests that were made again.", &["url_template"]),
            shed: new.counters("runs_gateway_shed_total", "Calls refused because a limit was reached.", &["what"]),
            connections: new.gauge("runs_gateway_connections", "Connections of callers that are open."),
            bytes_left: new.gauge(
                "runs_gateway_held_bytes_left",
                "Bytes that may still be held for callers (--max-held-bytes).",
            ),
            events: (0..EVENT_TYPES).map(|number| Some(events.with_label_values(&[&event_type(number)?]))).collect(),
            first_event: new.histograms(
                "runs_gateway_time_to_first_event_seconds",
                "Time from a streaming call's headers to the first event sent.",
                &["rpc_method"],
                SECONDS,
            ),
            streams_cut: new.counter(
                "runs_gateway_upstream_streams_cut_total",
                "Event streams of the upstream that ended before their end; the runs were followed by polling.",
            ),
            pollers: new.gauge("runs_gateway_pollers", "Runs that are polled."),
            watchers: new
                .gauge("runs_gateway_watchers", "Callers that watch or wait for runs, or follow one whose stream was cut."),
            event_log: EventLogMetrics::new(&new),
            creates: CreateMetrics::new(&new),
            troubles,
            mesh_headers_stripped: new.counter(
                "runs_gateway_mesh_headers_stripped_total",
                "Calls that named their caller as only a mesh's proxies may (--mesh-peer), and went on \
                 without.",
            ),
            handshakes_failed: new.counters(
                "runs_gateway_handshake_failures_total",
                "Connections of callers that got no further than their handshake.",
                &["reason"],
            ),
            reload_failing: new.gauges(
                "runs_gateway_reload_failing",
                "1 while files cannot be used and what was read before stays.",
                &["files"],
            ),
            certificate_expiry: new.gauges(
                "runs_gateway_certificate_expiry_timestamp_seconds",
                "When a certificate of the gateway's own expires, in Unix seconds.",
                &["certificate"],
            ),
            upstream_key_expiry: new.gauge(
                "runs_gateway_upstream_key_expiry_timestamp_seconds",
                "When the upstream key that --upstream-key-command printed expires, in Unix seconds; 0 if it does not.",
            ),
            runs_ended: new.counters(
                "runs_gateway_runs_ended_total",
                "Runs that the gateway saw end, each once.",
                &["status", "error_code"],
            ),
            tokens: if settings.legacy_metrics {
                TokenMetrics::legacy(&new)
            } else {
                TokenMetrics::new(&new, &settings.provider)
            },
            models: Models::default(),
            callers: Callers::new(
                new.counters("runs_gateway_caller_calls_total", "Calls, by the name of their caller.", &["caller"]),
                new.counters(
                    "runs_gateway_caller_refused_total",
                    "Calls refused because a limit was reached, by the name of their caller.",
                    &["caller"],
                ),
                new.gauges(
                    "runs_gateway_caller_live_streams",
                    "Streaming calls that are open, by the name of their caller.",
                    &["caller"],
                ),
                new.counters(
                    "runs_gateway_caller_tokens_total",
                    "Tokens that runs used, each run once, by the name of the first caller that was shown its end.",
                    &["caller", "gen_ai_token_type", "gen_ai_request_model"],
                ),
            ),
            registry,
        }
    }

    /// So many handshakes more failed for this reason, which is one of few.
    pub fn handshake_failed(&self, reason: &str, count: u64) {
        self.handshakes_failed
            .with_label_values(&[reason])
            .inc_by(count);
    }

    /// 1 while files of this kind cannot be used.
    pub fn reload_failing(&self, files: &str) -> IntGauge {
        self.reload_failing.with_label_values(&[files])
    }

    /// When a certificate of the gateway's own expires.
    pub fn certificate_expiry(&self, certificate: &str) -> IntGauge {
        self.certificate_expiry.with_label_values(&[certificate])
    }

    /// All metrics, in Prometheus' text format.
    ///
    /// # Panics
    ///
    /// If a metric has no name.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("every metric has a name and a value");
        String::from_utf8(text).expect("names and labels are text")
    }

    /// An event was sent.
    pub(super) fn sent(&self, kind: RunEventType) {
        let counter = usize::try_from(i32::from(kind))
            .ok()
            .and_then(|number| self.events.get(number)?.as_ref());
        if let Some(counter) = counter {
            counter.inc();
        }
    }

    pub(super) fn first_event(&self, method: &str, seconds: f64) {
        self.first_event
            .with_label_values(&[method])
            .observe(seconds);
    }

    pub(super) fn run_ended(&self, status: &str, error: Option<&str>) {
        self.runs_ended
            .with_label_values(&[
                status,
                error.map_or("", |error| bounded(error, &RUN_ERRORS)),
            ])
            .inc();
    }

    /// A run that has ended used its tokens.
    pub(super) fn tokens(&self, run: &Run) {
        self.tokens.count(run, self.models.label(&run.model));
    }
}

impl Metrics {
    /// A caller was shown the end of a run that used so many tokens of a kind.
    pub(super) fn caller_tokens(&self, caller: &str, kind: &str, model: &str, tokens: u32) {
        self.callers
            .tokens
            .with_label_values(&[caller, kind, self.models.label(model)])
            .inc_by(tokens.into());
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// The first [`MODELS`] models that were seen.
#[derive(Default)]
struct Models(Mutex<HashSet<&'static str>>);

impl Models {
    /// The model's name, if it is one of those.
    fn label(&self, model: &str) -> &'static str {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(label) = known.get(model) {
            return label;
        }
        if known.len() >= MODELS || model.len() > 128 {
            return OTHER;
        }
        // Kept as long as the process: there are few of them.
        let label: &'static str = Box::leak(model.to_owned().into_boxed_str());
        known.insert(label);
        label
    }
}

fn bounded<'a>(value: &'a str, known: &[&'a str]) -> &'a str {
    if known.contains(&value) { value } else { OTHER }
}

/// The name of a type of events as a label: `thread_run_created`.
fn event_type(number: i32) -> Option<String> {
    let kind = RunEventType::try_from(number).ok()?;
    let name = kind
        .as_str_name()
        .trim_start_matches("RUN_EVENT_TYPE_")
        .to_ascii_lowercase();
    Some(if kind == RunEventType::Unspecified {
        "unknown".to_owned()
    } else {
        name
    })
}
