//! The flags of the gateway itself, whichever upstream it has.

use std::net::SocketAddr;

use clap::Args;
use http::HeaderName;
use humantime::Duration;

use super::{
    access::AccessArgs,
    isolation::IsolationArgs,
    limits::LimitArgs,
    requests::RequestArgs,
    streams::StreamArgs,
    telemetry::TelemetryArgs,
    values::{FRAMING, address},
};

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

    /// The longest time for connecting to the upstream, TLS included.
    #[arg(long, default_value = "5s")]
    pub(super) connect_timeout: Duration,

    /// The longest time for an upstream answer, from sending the request to the answer's last byte.
    #[arg(long, default_value = "60s")]
    pub(super) answer_timeout: Duration,

    /// The largest upstream answer, in bytes.
    #[arg(long, default_value_t = 16 << 20)]
    pub(super) max_answer_bytes: usize,

    /// The largest event of an upstream's stream, in bytes.
    #[arg(long, default_value_t = 4 << 20)]
    pub(super) max_event_bytes: usize,

    /// The largest gRPC request message, in bytes.
    #[arg(long, default_value_t = 4 << 20)]
    pub(super) max_request_bytes: usize,

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
    pub(super) requests: RequestArgs,

    #[command(flatten)]
    pub(super) limits: LimitArgs,

    #[command(flatten)]
    pub(super) streams: StreamArgs,
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
