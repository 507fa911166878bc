//! What a server allows its callers, and how long.

use std::time::Duration;

/// The limits of a server. [`Default`] suits most deployments.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections open at a time, those that are still in their handshake among them, shared out
    /// by address. For one more, one without a call of a known caller gives way, the idlest of the
    /// largest holder first. Where there is none, the new one is accepted and closed at once: its
    /// caller goes to another replica. Left in the backlog it would look connected, and calls on it
    /// would hang until their deadline.
    pub connections: usize,
    /// Time from accepting a connection to its HTTP/2 preface, TLS included. Over HTTP/1.1 also for
    /// the head of a request, from the end of the one before, and for each piece of its body.
    pub handshake: Duration,
    /// Streams open at a time per connection. One more is refused, which callers know to be safe to
    /// repeat.
    pub streams: u32,
    /// Calls open at a time on all connections together, streams among them, from their first whole
    /// message on. One more is refused with a time to come back, and has done nothing. Calls of
    /// health and reflection are not counted: they are answered when nothing else is. Their streams
    /// have places of their own, as many as connections, and the oldest gives way.
    pub calls: usize,
    /// Bytes that are held for callers, of all together: messages as they come and while they are
    /// worked on, answers and events until they are written, outputs of conversations, states of
    /// runs that are polled. Shared out by caller. Past it calls are refused with a time to come
    /// back, and the largest holder's answers that nobody reads end, the oldest first.
    pub held_bytes: usize,
    /// Time from a call's headers to the end of its first message.
    pub message: Duration,
    /// Bytes that a caller may send ahead on one stream.
    pub stream_window: u32,
    /// Bytes that a caller may send ahead on all streams of a connection.
    pub connection_window: u32,
    /// Bytes that the HTTP library holds per stream for a caller that does not read. What the answer
    /// itself holds is counted in [`Limits::held_bytes`].
    pub stream_send_buffer: u32,
    /// Bytes of a call's metadata, as HTTP/2 counts them: name, value and 32 more for each. Over
    /// HTTP/1.1: of a request's head.
    pub metadata: u32,
    /// Bytes of a request's message, unpacked too. Those of health and reflection have 4 KiB.
    pub request_bytes: usize,
    /// Messages of answers with more bytes are packed, for callers that accept gzip; `None` for
    /// none.
    pub pack_above: Option<usize>,
    /// Time between two pings on a connection; `None` for no pings.
    pub ping_interval: Option<Duration>,
    /// Time that a ping may go unanswered before the connection is closed.
    pub ping_timeout: Duration,
    /// Time without a call after which a connection is closed; `None` for never.
    pub idle: Option<Duration>,
    /// Age at which a connection takes no more calls (GOAWAY), ±10% so that they do not all come
    /// back at once; `None` for never. It is what lets callers find new replicas behind a balancer
    /// that balances connections.
    pub age: Option<Duration>,
    /// Time from that GOAWAY (or the one for being idle) until what still runs on the connection
    /// ends as UNAVAILABLE.
    pub age_grace: Duration,
    /// Streams of a connection that the server may have to reset for errors of the peer's, in the
    /// connection's whole life and counting those refused for [`Limits::streams`]; one more closes
    /// the connection.
    pub error_resets: usize,
    /// Streams that a caller may have reset before the server came to see them; one more closes the
    /// connection.
    pub pending_resets: usize,
    /// The longest deadline: a call that asks for more gets this. A call that asks for none has
    /// none.
    pub deadline: Duration,
    /// Age at which a call ends as UNAVAILABLE, ±10% so that streams that began together do not all
    /// come back at once; `None` for never. A stream says then how to resume it, as in a drain. A
    /// connection's age ends most streams sooner; this bounds them where connections have none.
    pub call_age: Option<Duration>,
    /// Time from the start of a drain (health turns `NOT_SERVING`) until connections are refused
    /// and the open ones take no more calls. Whoever routes calls here learns in this time to route
    /// them elsewhere.
    pub drain_delay: Duration,
    /// Time after the delay until what still runs ends as UNAVAILABLE, and until cancellations that
    /// callers have asked for in case they leave are given up.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        Self {
            connections: 4096,
            handshake: Duration::from_secs(10),
            streams: 1000,
            // An open call takes some 10 KiB, a stream some 50: half a GiB of the latter.
            calls: 10_000,
            held_bytes: 1 << 30,
            message: Duration::from_secs(30),
            stream_window: 64 << 10,
            connection_window: 16 << 20,
            stream_send_buffer: 64 << 10,
            metadata: 16 << 10,
            request_bytes: 4 << 20,
            pack_above: Some(1 << 10),
            ping_interval: Some(Duration::from_secs(60)),
            ping_timeout: Duration::from_secs(20),
            idle: Some(minutes(30)),
            age: Some(minutes(30)),
            // A run expires ten minutes after it was created: the stream of one that was just
            // started can end by itself.
            age_grace: minutes(15),
            error_resets: 1024,
            // h2's own 20 is less than the calls that a busy caller may cancel together.
            pending_resets: 100,
            deadline: minutes(24 * 60),
            call_age: Some(minutes(60)),
            // Together they stay below the 30 s that Kubernetes gives a pod to end.
            drain_delay: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(20),
        }
    }
}
