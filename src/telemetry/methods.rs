//! The methods that are served, each with its metrics.
//!
//! Must hold: what callers may ask for freely is one method, [`UNKNOWN`].

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use prometheus::{Histogram, HistogramVec, IntGauge};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::Code;

use super::make::{Make, SECONDS};
use crate::v1::DESCRIPTOR;

/// `rpc.method` of what is not served, as the conventions have it.
pub(super) const UNKNOWN: &str = "_OTHER";

/// What is served beside the contract.
const STANDARD: [&str; 5] = [
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/Watch",
    "grpc.health.v1.Health/List",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// All methods, by path.
pub(super) struct Methods {
    by_path: HashMap<String, Arc<Method>>,
    unknown: Arc<Method>,
}

/// One method, with its metrics.
#[derive(Debug)]
pub(super) struct Method {
    /// `rpc.method`: its service and its own name, such as `runsgateway.v1.RunService/GetRun`.
    pub(super) name: String,
    /// The value of the label `rpc_method`.
    pub(super) label: String,
    /// Its answer is a stream. What is not in the contract counts as one.
    pub(super) streams: bool,
    pub(super) active: IntGauge,
    durations: Durations,
    by_code: [OnceLock<Histogram>; 17],
}

/// The durations of calls, under today's labels or those of the release before.
#[derive(Debug, Clone)]
enum Durations {
    Current(HistogramVec),
    Legacy(HistogramVec),
}

impl Methods {
    /// All of them at zero. `legacy`: with the names and labels of the release before.
    pub(super) fn new(new: &Make<'_>, legacy: bool) -> Self {
        let durations = |labels: &[&str]| {
            new.histograms(
                "rpc_server_call_duration_seconds",
                "Time from a call's headers to the last byte of its answer.",
                labels,
                SECONDS,
            )
        };
        let durations = if legacy {
            Durations::Legacy(durations(&[
                "rpc_service",
                "rpc_method",
                "rpc_response_status_code",
            ]))
        } else {
            Durations::Current(durations(&[
                "rpc_system_name",
                "rpc_method",
                "rpc_status_code",
                "error_type",
            ]))
        };
        let active = |name: &str, labels: &[&str]| {
            new.gauges(name, "Calls that are open, streams among them.", labels)
        };
        let active = if legacy {
            active("rpc_server_active_calls", &["rpc_service", "rpc_method"])
        } else {
            active("runs_gateway_active_calls", &["rpc_method"])
        };
        let method = |name: &str, streams| {
            let (service, short) = legacy_names(name);
            Arc::new(Method {
                name: name.to_owned(),
                label: if legacy { short } else { name }.to_owned(),
                streams,
                active: if legacy {
                    active.with_label_values(&[service, short])
                } else {
                    active.with_label_values(&[name])
                },
                durations: durations.clone(),
                by_code: [const { OnceLock::new() }; 17],
            })
        };
        let served = served().into_iter();
        Self {
            by_path: served
                .map(|(name, streams)| (format!("/{name}"), method(&name, streams)))
                .collect(),
            unknown: method(UNKNOWN, true),
        }
    }

    /// The method at `path`; if it is not served, the one that stands for all of those.
    pub(super) fn at(&self, path: &str) -> Result<&Arc<Method>, &Arc<Method>> {
        self.by_path.get(path).ok_or(&self.unknown)
    }
}

impl Method {
    /// The durations of calls that ended with `code`.
    pub(super) fn duration(&self, code: Code) -> &Histogram {
        let index = usize::try_from(i32::from(code)).unwrap_or_default();
        self.by_code[index].get_or_init(|| match &self.durations {
            Durations::Current(durations) => {
                let (status, error) = (code_name(code), error_type(code).unwrap_or_default());
                durations.with_label_values(&["grpc", &*self.name, status, error])
            }
            Durations::Legacy(durations) => {
                let (service, method) = legacy_names(&self.name);
                durations.with_label_values(&[service, method, code_name(code)])
            }
        })
    }
}

/// Service and method, as the release before had them.
fn legacy_names(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or(("other", "other"))
}

/// The full names of the methods that are served, and whether their answers are streams.
fn served() -> Vec<(String, bool)> {
    let contract = FileDescriptorSet::decode(DESCRIPTOR).expect("the embedded descriptor is valid");
    let mut served: Vec<_> = STANDARD.map(|name| (name.to_owned(), true)).into();
    for file in &contract.file {
        for service in &file.service {
            let service_name = format!("{}.{}", file.package(), service.name());
            let methods = service.method.iter();
            served.extend(methods.map(|method| {
                let name = format!("{service_name}/{}", method.name());
                (name, method.server_streaming())
            }));
        }
    }
    served
}

/// `error.type` of a code: its name, if the conventions count it as the server's own error.
pub(super) fn error_type(code: Code) -> Option<&'static str> {
    let own = matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    );
    own.then(|| code_name(code))
}

/// The name of a code as gRPC writes it, such as `NOT_FOUND`.
pub(super) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
