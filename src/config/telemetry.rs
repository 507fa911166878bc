//! The flags of logs, metrics and traces.

use std::net::{Ipv4Addr, SocketAddr};

use clap::Args;

use tracing_subscriber::EnvFilter;
use url::Url;

use super::{invalid::Invalid, values::address};
use crate::{
    admin::Admin,
    telemetry::{LogFormat, MAX_NAMED_CALLERS, OtlpProtocol, Traces},
};

/// The flags.
#[derive(Debug, Clone, Args)]
pub(super) struct TelemetryArgs {
    /// Address of the admin port: /metrics, /healthz, /readyz, /version. Not for callers: it has no
    /// access control. By default 127.0.0.1:9090 if that is free; if one is given it has to be.
    #[arg(long, value_parser = address)]
    admin_listen: Option<SocketAddr>,

    /// What is logged: a level, or directives as of the `tracing` crates, such as
    /// `runs_gateway=debug,info`. Nothing is of the level `trace` in a release: it is that of every
    /// frame.
    #[arg(long, default_value = "info")]
    log: String,

    /// How log lines look.
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,

    /// Whether the line of each call has the ids of its thread and run, and its caller's name. Such
    /// a log tells who talks, when, and about which threads.
    #[arg(long)]
    log_ids: bool,

    /// Metrics with the names and labels of the release before (RPC conventions before 1.45,
    /// `gen_ai.client.token.usage`), in place of today's. For one release.
    #[arg(long)]
    legacy_metrics: bool,

    /// As many callers have metrics of their own, by their names: the first that call. All others
    /// are the caller `other`.
    #[arg(long, default_value_t = MAX_NAMED_CALLERS)]
    max_named_callers: usize,

    /// The variables ask for traces, or do not: nobody is to be told.
    #[arg(skip)]
    pub(super) untraced: bool,
}

/// What the gateway tells of itself, and where.
#[derive(Debug, Clone)]
pub struct TelemetryConfig {
    /// Where the admin port is.
    pub admin: Admin,
    /// What is logged.
    pub log: String,
    /// How.
    pub log_format: LogFormat,
    /// Whether lines of calls have ids and names.
    pub log_ids: bool,
    /// Metrics have the names and labels of the release before.
    pub legacy_metrics: bool,
    /// How many callers have metrics of their own.
    pub max_named_callers: usize,
    /// Whether and how traces are exported.
    pub traces: Option<Traces>,
}

/// What the `OTEL_*` variables ask for, by their specification: nothing is exported without an
/// endpoint.
fn traces(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Traces>, Invalid> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let either = |what: &str| {
        let names = [
            format!("OTEL_EXPORTER_OTLP_TRACES_{what}"),
            format!("OTEL_EXPORTER_OTLP_{what}"),
        ];
        let found = |name: String| variable(&name).map(|value| (name, value));
        names.into_iter().find_map(found)
    };
    let disabled = variable("OTEL_SDK_DISABLED")
        .is_some_and(|value| value.trim().eq_ignore_ascii_case("true"));
    if disabled {
        return Ok(None);
    }
    match variable("OTEL_TRACES_EXPORTER").as_deref().map(str::trim) {
        None | Some("otlp") => {}
        Some("none") => return Ok(None),
        Some(other) => {
            return Err(Invalid::new(format!(
                "OTEL_TRACES_EXPORTER must be otlp or none, not {other:?}"
            )));
        }
    }
    let protocol = match &either("PROTOCOL") {
        Some((_, value)) if value.trim() == "grpc" => OtlpProtocol::Grpc,
        None => OtlpProtocol::Http,
        Some((_, value)) if value.trim() == "http/protobuf" => OtlpProtocol::Http,
        Some((name, other)) => {
            return Err(Invalid::new(format!(
                "{name} must be grpc or http/protobuf, not {other:?}"
            )));
        }
    };
    let Some((name, endpoint)) = either("ENDPOINT") else {
        return Ok(None);
    };
    let is_url = Url::parse(endpoint.trim())
        .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    if !is_url {
        // Not repeated: it may hold a key.
        return Err(Invalid::new(format!(
            "{name} must be a URL that begins with http:// or https://"
        )));
    }
    check_exporter(&variable)?;
    let named = variable("OTEL_RESOURCE_ATTRIBUTES")
        .is_some_and(|attributes| attributes.contains("service.name="));
    Ok(Some(Traces {
        protocol,
        is_named: named || variable("OTEL_SERVICE_NAME").is_some(),
    }))
}

/// Refuses what the exporter would pass over, with what it takes instead. Values are not repeated:
/// headers may hold keys.
fn check_exporter(variable: &impl Fn(&str) -> Option<String>) -> Result<(), Invalid> {
    type Check = (&'static [&'static str], fn(&str) -> bool, &'static str);
    const CHECKS: [Check; 4] = [
        (
            &["OTEL_TRACES_SAMPLER"],
            is_sampler,
            "must be always_on, always_off or traceidratio, or one of them after parentbased_",
        ),
        (
            &["OTEL_TRACES_SAMPLER_ARG"],
            is_ratio,
            "must be a number from 0 to 1",
        ),
        (
            &[
                "OTEL_EXPORTER_OTLP_TIMEOUT",
                "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
                "OTEL_BSP_SCHEDULE_DELAY",
                "OTEL_BSP_EXPORT_TIMEOUT",
                "OTEL_BSP_MAX_QUEUE_SIZE",
                "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
            ],
            is_count,
            "must be a whole number (times are in milliseconds)",
        ),
        (
            &[
                "OTEL_EXPORTER_OTLP_HEADERS",
                "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
            ],
            are_pairs,
            "must be `name=value` pairs with commas between them",
        ),
    ];
    for (names, holds, words) in CHECKS {
        let wrong = |name: &&&str| variable(name).is_some_and(|value| !holds(value.trim()));
        if let Some(name) = names.iter().find(wrong) {
            return Err(Invalid::new(format!("{name} {words}")));
        }
    }
    Ok(())
}

fn is_sampler(value: &str) -> bool {
    let own = value.strip_prefix("parentbased_").unwrap_or(value);
    matches!(own, "always_on" | "always_off" | "traceidratio")
}

fn is_ratio(value: &str) -> bool {
    value
        .parse()
        .is_ok_and(|ratio: f64| (0.0..=1.0).contains(&ratio))
}

fn is_count(value: &str) -> bool {
    value.parse::<u64>().is_ok()
}

fn are_pairs(value: &str) -> bool {
    let mut pairs = value.split(',').filter(|pair| !pair.trim().is_empty());
    pairs.all(|pair| {
        let name = pair.split_once('=').map(|(name, _)| name.trim());
        name.is_some_and(|name| http::HeaderName::try_from(name).is_ok())
    })
}

/// The target of the gateway's own lines.
const OWN: &str = "runs_gateway";

/// Crates whose lines a bare word of `--log` may ask for.
const TARGETS: [&str; 12] = [
    OWN,
    "h2",
    "hyper",
    "hyper_util",
    "opentelemetry",
    "opentelemetry_sdk",
    "reqwest",
    "rustls",
    "tokio",
    "tonic",
    "tower",
    "tracing",
];

/// Refuses directives that would silently turn the log off: a misspelt level is taken for a target.
fn check_log(directives: &str) -> Result<(), Invalid> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for directive in directives.split(',').map(str::trim) {
        let is_level = LEVELS
            .iter()
            .any(|level| level.eq_ignore_ascii_case(directive));
        let target = directive.split("::").next().unwrap_or_default();
        let named = directive.split(['=', '[', ':']).next().unwrap_or_default();
        if named != OWN && !named.is_empty() && strsim::levenshtein(named, OWN) <= 2 {
            return Err(Invalid::new(format!(
                "--log: there is no target {named:?}: did you mean {OWN}?"
            )));
        }
        // The library takes numbers: 5 would be its level of every frame.
        let (_, level) = directive.rsplit_once('=').unwrap_or_default();
        let is_number = !level.is_empty() && level.bytes().all(|byte| byte.is_ascii_digit());
        let is_more = !is_number && directive.contains(['=', '[']) || TARGETS.contains(&target);
        if !(directive.is_empty() || is_level || is_more) {
            return Err(Invalid::new(format!(
                "--log: {directive:?} is neither a level (off, error, warn, info, debug) nor \
                 TARGET=LEVEL"
            )));
        }
    }
    EnvFilter::try_new(directives)
        .map(drop)
        .map_err(|error| Invalid::new(format!("--log {directives:?}: {error}")))
}

impl TryFrom<TelemetryArgs> for TelemetryConfig {
    type Error = Invalid;

    fn try_from(args: TelemetryArgs) -> Result<Self, Invalid> {
        check_log(&args.log)?;
        let usual = SocketAddr::from((Ipv4Addr::LOCALHOST, 9090));
        Ok(Self {
            admin: args.admin_listen.map_or(Admin::IfFree(usual), Admin::At),
            log: args.log,
            log_format: args.log_format,
            log_ids: args.log_ids,
            legacy_metrics: args.legacy_metrics,
            max_named_callers: args.max_named_callers,
            traces: if args.untraced {
                None
            } else {
                traces(|name| std::env::var(name).ok())?
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_are_exported_if_an_endpoint_is_named_and_nothing_forbids_it() {
        let (grpc, http) = (OtlpProtocol::Grpc, OtlpProtocol::Http);
        let cases = [
            ("", None),
            ("OTEL_EXPORTER_OTLP_ENDPOINT=", None),
            (
                "OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4318",
                Some((http, false)),
            ),
            (
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://c:4317 OTEL_EXPORTER_OTLP_PROTOCOL=grpc",
                Some((grpc, false)),
            ),
            (
                "OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4318 OTEL_SERVICE_NAME=x",
                Some((http, true)),
            ),
            (
                "OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4318 OTEL_RESOURCE_ATTRIBUTES=service.name=x",
                Some((http, true)),
            ),
            (
                "OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4318 OTEL_SDK_DISABLED=true",
                None,
            ),
            (
                "OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4318 OTEL_TRACES_EXPORTER=none",
                None,
            ),
        ];
        for (variables, expected) in cases {
            let set = || {
                variables
                    .split_whitespace()
                    .filter_map(|variable| variable.split_once('='))
            };
            let traces = traces(|name| {
                set()
                    .find(|(known, _)| *known == name)
                    .map(|(_, value)| value.to_owned())
            });
            let traces = traces.expect(variables);
            assert_eq!(
                traces.map(|traces| (traces.protocol, traces.is_named)),
                expected,
                "{variables}"
            );
        }
    }
}
