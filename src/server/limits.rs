//! The limits of the server, and their flags.

use std::time::Duration;

use clap::{Args, builder::RangedI64ValueParser};

use super::memory;
use crate::setting::{Switchable, bytes, defaults, some, some_time, time, time_or_never};

/// The limits of the server. [`Default`] suits most deployments. A duration is written `500ms`,
/// `30s`, `10m`; where a limit can be off, `0s` is off.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits")]
pub struct Limits {
    /// Connections open at a time, shared out by address. For one more, one without a call of a
    /// known caller gives way, the idlest first; where there is none, it is closed at once.
    ///
    /// Those that are still in their handshake count, too. It is the largest holder's that gives
    /// way. A connection that is closed at once sends its caller to another replica; left in the
    /// backlog it would look connected, and calls on it would hang until their deadline.
    #[arg(id = "max-connections", long, default_value = "4096", value_parser = some::<usize>)]
    pub connections: usize,

    /// Calls open at a time on a connection; one more is refused, and safe to repeat.
    #[arg(id = "max-streams-per-connection", long, default_value = "1000", value_parser = some::<u32>)]
    pub streams: u32,

    /// Calls whose message has come, open at a time on all connections together; one more is refused
    /// with a time to come back.
    ///
    /// It has done nothing. Calls of health and reflection are not counted: they are answered when
    /// nothing else is. Their streams have places of their own, as many as connections, and the
    /// oldest gives way.
    // An open call takes some 10 KiB, a stream some 50: half a GiB of the latter.
    #[arg(id = "max-calls", long, default_value = "10000", value_parser = some::<usize>)]
    pub calls: usize,

    /// Bytes held for callers, of all together: messages, answers and events until they are
    /// written, outputs of conversations, states of polled runs. Past it calls are refused, and
    /// answers that nobody reads end. `auto`: a quarter of the container's memory limit, or of the
    /// machine's memory.
    ///
    /// They are shared out by caller. Calls are refused with a time to come back; of the answers it
    /// is the largest holder's that end, the oldest first.
    #[arg(id = "max-held-bytes", long, default_value = "auto", value_parser = held_bytes)]
    pub held_bytes: usize,

    /// Time from a call's headers to the end of its first message.
    #[arg(id = "message-timeout", long, default_value = "30s", value_parser = time)]
    pub message: Duration,

    /// The largest gRPC request message, in bytes, unpacked. Those of health and reflection have
    /// 4 KiB.
    #[arg(id = "max-request-bytes", long, default_value_t = 4 << 20, value_parser = bytes::<1024, usize>)]
    pub request_bytes: usize,

    /// Bytes of a call's metadata.
    ///
    /// As HTTP/2 counts them: name, value and 32 more for each. Over HTTP/1.1: of a request's head.
    #[arg(id = "max-metadata-bytes", long, default_value_t = 16 << 10, value_parser = bytes::<1024, u32>)]
    pub metadata: u32,

    /// Messages of answers with more bytes are packed by gzip, if the caller accepts that. 0: none.
    #[arg(id = "pack-above", long, default_value = "1024", value_parser = size_or_none)]
    pub pack_above: Switchable<usize>,

    /// Bytes that a caller may send ahead on one call.
    #[arg(id = "stream-window", long, default_value_t = 64 << 10, value_parser = window())]
    pub stream_window: u32,

    /// Bytes that a caller may send ahead on all calls of a connection.
    #[arg(id = "connection-window", long, default_value_t = 16 << 20, value_parser = window())]
    pub connection_window: u32,

    /// Bytes that the HTTP library holds per call for a caller that does not read.
    ///
    /// What the answer itself holds is counted in `--max-held-bytes`.
    #[arg(id = "stream-send-buffer", long, default_value_t = 64 << 10, value_parser = some::<u32>)]
    pub stream_send_buffer: u32,

    /// Time from accepting a connection to its HTTP/2 preface, TLS included.
    ///
    /// Over HTTP/1.1 also for the head of a request, from the end of the one before, and for each
    /// piece of its body.
    #[arg(id = "handshake-timeout", long, default_value = "10s", value_parser = some_time)]
    pub handshake: Duration,

    /// Time between two pings on a connection. 0s: no pings.
    #[arg(id = "ping-interval", long, default_value = "1m", value_parser = time_or_never)]
    pub ping_interval: Switchable<Duration>,

    /// Time that a ping may go unanswered; then its connection is closed.
    #[arg(id = "ping-timeout", long, default_value = "20s", value_parser = some_time)]
    pub ping_timeout: Duration,

    /// Time without a call after which a connection is closed. 0s: never.
    #[arg(id = "max-connection-idle", long, default_value = "30m", value_parser = time_or_never)]
    pub idle: Switchable<Duration>,

    /// Age at which a connection takes no more calls. 0s: never.
    ///
    /// It says so by GOAWAY, ±10% of the time so that not all come back at once. It is what lets
    /// callers find new replicas behind a balancer that balances connections.
    #[arg(id = "max-connection-age", long, default_value = "30m", value_parser = time_or_never)]
    pub age: Switchable<Duration>,

    /// Time after that until what still runs on it is ended.
    ///
    /// It ends as UNAVAILABLE; so it does on a connection that was idle.
    // A run expires ten minutes after it was created: the stream of one that was just started can
    // end by itself.
    #[arg(id = "max-connection-age-grace", long, default_value = "15m", value_parser = time)]
    pub age_grace: Duration,

    /// Stream errors of the peer's that a connection survives.
    ///
    /// Counted over its whole life, with those refused for `--max-streams-per-connection`.
    #[arg(id = "max-error-resets", long, default_value = "1024")]
    pub error_resets: usize,

    /// Calls that a caller may cancel before the server sees them; one more closes the connection.
    // h2's own 20 is less than the calls that a busy caller may cancel together.
    #[arg(id = "max-pending-resets", long, default_value = "100")]
    pub pending_resets: usize,

    /// The longest deadline; a call that asks for more gets this. A call that asks for none has none.
    #[arg(id = "max-deadline", long, default_value = "1day", value_parser = some_time)]
    pub deadline: Duration,

    /// Age at which a call ends as UNAVAILABLE; a stream then says how to resume it. 0s: never.
    ///
    /// ±10% of it, so that streams that began together do not all come back at once. A connection's
    /// age ends most streams sooner; this bounds them where connections have none.
    #[arg(id = "max-stream-age", long, default_value = "1h", value_parser = time_or_never)]
    pub call_age: Switchable<Duration>,

    /// Time from a shutdown signal until no more connections and calls are taken. Health says
    /// `NOT_SERVING` meanwhile.
    ///
    /// Whoever routes calls here learns in this time to route them elsewhere.
    // Together with the timeout it stays below the 30 s that Kubernetes gives a pod to end.
    #[arg(id = "drain-delay", long, default_value = "5s", value_parser = time)]
    pub drain_delay: Duration,

    /// Time after that until what still runs is ended.
    ///
    /// Cancellations that callers have asked for in case they leave are given up then, too.
    #[arg(id = "drain-timeout", long, default_value = "20s", value_parser = time)]
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        defaults()
    }
}

impl Limits {
    /// As many connections to an upstream by HTTP/1.1 as may be kept beside what is held.
    pub fn kept_connections(&self) -> usize {
        memory::kept_connections(self.held_bytes)
    }
}

/// Less would hold no message and answer of usual size.
const MIN_HELD_BYTES: u32 = 64 << 10;

fn held_bytes(text: &str) -> Result<usize, String> {
    if text == "auto" {
        Ok(memory::held_bytes())
    } else {
        bytes::<MIN_HELD_BYTES, usize>(text)
    }
}

fn size_or_none(text: &str) -> Result<Switchable<usize>, String> {
    let size: usize = text.parse().map_err(|error| format!("{error}"))?;
    Ok(Some(size).filter(|size| *size > 0))
}

/// Windows of HTTP/2 end there (RFC 9113, 6.9.1).
fn window() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(i32::MAX))
}
