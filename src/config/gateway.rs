//! The flags of the gateway itself, whichever upstream it has.

use std::net::SocketAddr;

use clap::Args;
use http::HeaderName;

use super::{
    access::AccessArgs,
    event_log::EventLogArgs,
    isolation::IsolationArgs,
    telemetry::TelemetryArgs,
    values::{FRAMING, address},
};
use crate::{runs::StreamLimits, server::Limits, upstream::UpstreamLimits};

/// The flags. A duration is written `500ms`, `30s`, `10m`.
#[derive(Debug, Args)]
pub(super) struct GatewayArgs {
    /// Address to listen on for gRPC. Port 0 takes a free port.
    #[arg(long, default_value = "127.0.0.1:50051", value_parser = address)]
    pub(super) listen: SocketAddr,

    /// Metadata of callers that is passed on to the upstream as headers, by name. All other
    /// metadata stays here.
    #[arg(
        long,
        value_delimiter = ',',
        value_parser = forwardable,
        default_value = "idempotency-key,openai-organization,openai-project,x-client-request-id,traceparent,tracestate"
    )]
    pub(super) forward_metadata: Vec<HeaderName>,

    /// Threads that serve calls. By default one per core.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) worker_threads: Option<u16>,

    #[command(flatten)]
    pub(super) telemetry: TelemetryArgs,

    #[command(flatten)]
    pub(super) access: AccessArgs,

    #[command(flatten)]
    pub(super) isolation: IsolationArgs,

    #[command(flatten)]
    pub(super) upstream: UpstreamLimits,

    #[command(flatten)]
    pub(super) limits: Limits,

    #[command(flatten)]
    pub(super) streams: StreamLimits,

    #[command(flatten)]
    pub(super) event_log: EventLogArgs,
}

/// The name of metadata that may be passed on.
fn forwardable(name: &str) -> Result<HeaderName, String> {
    let name = HeaderName::try_from(name).map_err(|_| "not the name of a header")?;
    if FRAMING.contains(&name.as_str()) {
        Err("the gateway sets it".to_owned())
    } else {
        Ok(name)
    }
}
