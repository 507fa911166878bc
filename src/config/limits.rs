//! The flags of the server's limits. What each means, and why its default is right for most, stands
//! with [`Limits`].

use clap::{Args, builder::RangedI64ValueParser};
use humantime::Duration;

use super::memory;
use crate::server::Limits;

/// The flags. A duration is written `500ms`, `30s`, `10m`; where a limit can be off, `0s` is off.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(super) struct LimitArgs {
    /// Connections open at a time, shared out by address. For one more, one without a call of a
    /// known caller gives way, the idlest first; where there is none, it is closed at once.
    #[arg(long, default_value_t = Limits::default().connections)]
    max_connections: usize,

    /// Calls open at a time on a connection; one more is refused.
    #[arg(long, default_value_t = Limits::default().streams)]
    max_streams_per_connection: u32,

    /// Calls whose message has come, open at a time on all connections together; one more is refused
    /// with a time to come back.
    #[arg(long, default_value_t = Limits::default().calls)]
    max_calls: usize,

    /// Bytes held for callers, of all together: messages, answers and events until they are
    /// written, outputs of conversations, states of polled runs. Past it calls are refused, and
    /// answers that nobody reads end. Not set: a quarter of the container's memory limit, or of the
    /// machine's memory.
    #[arg(long)]
    max_held_bytes: Option<usize>,

    /// Time from a call's headers to the end of its first message.
    #[arg(long, default_value_t = Limits::default().message.into())]
    message_timeout: Duration,

    /// Bytes of a call's metadata.
    #[arg(long, default_value_t = Limits::default().metadata)]
    max_metadata_bytes: u32,

    /// Messages of answers with more bytes are packed by gzip, if the caller accepts that. 0: none.
    #[arg(long, env = "RUNS_GATEWAY_PACK_ABOVE", default_value_t = Limits::default().pack_above.unwrap_or_default())]
    pack_above: usize,

    /// Bytes that a caller may send ahead on one call.
    #[arg(long, default_value_t = Limits::default().stream_window, value_parser = window())]
    stream_window: u32,

    /// Bytes that a caller may send ahead on all calls of a connection.
    #[arg(long, default_value_t = Limits::default().connection_window, value_parser = window())]
    connection_window: u32,

    /// Bytes that the HTTP library holds per call for a caller that does not read.
    #[arg(long, default_value_t = Limits::default().stream_send_buffer)]
    stream_send_buffer: u32,

    /// Time from accepting a connection to its HTTP/2 preface.
    #[arg(long, default_value_t = Limits::default().handshake.into())]
    handshake_timeout: Duration,

    /// Time between two pings on a connection. 0s: no pings.
    #[arg(long, default_value_t = Limits::default().ping_interval.unwrap_or_default().into())]
    ping_interval: Duration,

    /// Time that a ping may go unanswered.
    #[arg(long, default_value_t = Limits::default().ping_timeout.into())]
    ping_timeout: Duration,

    /// Time without a call after which a connection is closed. 0s: never.
    #[arg(long, default_value_t = Limits::default().idle.unwrap_or_default().into())]
    max_connection_idle: Duration,

    /// Age at which a connection takes no more calls. 0s: never.
    #[arg(long, default_value_t = Limits::default().age.unwrap_or_default().into())]
    max_connection_age: Duration,

    /// Time after that until what still runs on it is ended.
    #[arg(long, default_value_t = Limits::default().age_grace.into())]
    max_connection_age_grace: Duration,

    /// Stream errors of the peer's that a connection survives.
    #[arg(long, default_value_t = Limits::default().error_resets)]
    max_error_resets: usize,

    /// Calls that a caller may cancel before the server sees them.
    #[arg(long, default_value_t = Limits::default().pending_resets)]
    max_pending_resets: usize,

    /// The longest deadline; a call that asks for more gets this.
    #[arg(long, default_value_t = Limits::default().deadline.into())]
    max_deadline: Duration,

    /// Age at which a call ends as UNAVAILABLE; a stream then says how to resume it. 0s: never.
    #[arg(long, default_value_t = Limits::default().call_age.unwrap_or_default().into())]
    max_stream_age: Duration,

    /// Time from a shutdown signal until no more connections and calls are taken. Health says
    /// `NOT_SERVING` meanwhile.
    #[arg(long, default_value_t = Limits::default().drain_delay.into())]
    drain_delay: Duration,

    /// Time after that until what still runs is ended.
    #[arg(long, default_value_t = Limits::default().drain_timeout.into())]
    drain_timeout: Duration,
}

/// Windows of HTTP/2 end there (RFC 9113, 6.9.1).
fn window() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(i32::MAX))
}

impl From<LimitArgs> for Limits {
    fn from(args: LimitArgs) -> Self {
        let unless_zero =
            |duration: Duration| Some(*duration).filter(|duration| !duration.is_zero());
        Self {
            connections: args.max_connections,
            handshake: *args.handshake_timeout,
            streams: args.max_streams_per_connection,
            calls: args.max_calls,
            held_bytes: args.max_held_bytes.unwrap_or_else(memory::held_bytes),
            message: *args.message_timeout,
            stream_window: args.stream_window,
            connection_window: args.connection_window,
            stream_send_buffer: args.stream_send_buffer,
            metadata: args.max_metadata_bytes,
            pack_above: Some(args.pack_above).filter(|above| *above > 0),
            ping_interval: unless_zero(args.ping_interval),
            ping_timeout: *args.ping_timeout,
            idle: unless_zero(args.max_connection_idle),
            age: unless_zero(args.max_connection_age),
            age_grace: *args.max_connection_age_grace,
            error_resets: args.max_error_resets,
            pending_resets: args.max_pending_resets,
            deadline: *args.max_deadline,
            call_age: unless_zero(args.max_stream_age),
            drain_delay: *args.drain_delay,
            drain_timeout: *args.drain_timeout,
            ..Self::default()
        }
    }
}
