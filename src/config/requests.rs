//! The flags of upstream requests: how many at a time, and when they are made again. What each
//! means, and why its default is right for most, stands with [`RequestLimits`] and [`RetryLimits`].

use clap::{Args, ValueEnum};
use humantime::Duration;

use crate::upstream::{HttpVersion, RequestLimits, RetryLimits};

/// The flags. A duration is written `500ms`, `30s`, `10m`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Upstream requests")]
pub(super) struct RequestArgs {
    /// Which HTTP is spoken to the upstream. Event streams use HTTP/1.1 in any case.
    #[arg(long, default_value = "auto")]
    upstream_http2: Http2,

    /// How long an upstream connection with requests on it may be silent before it is asked for a
    /// sign of life: by a ping over HTTP/2, by TCP's keepalive below HTTP/1.1. 0s: never.
    #[arg(long, default_value = "20s")]
    upstream_ping_interval: Duration,

    /// How long that sign may take before the connection is given up.
    #[arg(long, default_value = "10s")]
    upstream_ping_timeout: Duration,

    /// Upstream requests in flight; one more waits.
    #[arg(long, default_value_t = RequestLimits::default().requests as u64, value_parser = clap::value_parser!(u64).range(1..=65536))]
    max_upstream_requests: u64,

    /// Upstream requests in flight on one HTTP/2 connection. At most what the upstream allows.
    #[arg(long, default_value_t = RequestLimits::default().per_connection as u64, value_parser = clap::value_parser!(u64).range(1..=65536))]
    max_requests_per_upstream_connection: u64,

    /// Upstream requests that wait for their turn; one more is refused.
    #[arg(long, default_value_t = RequestLimits::default().queue)]
    max_upstream_queue: usize,

    /// How long an upstream request waits for its turn before it is refused.
    #[arg(long, default_value_t = RequestLimits::default().wait.into())]
    upstream_queue_timeout: Duration,

    /// How long a create or a submit keeps its place after its caller has left.
    #[arg(long, default_value_t = RequestLimits::default().left.into())]
    abandoned_write_hold: Duration,

    /// Retries of an upstream request that failed and may be made again. 0: none.
    #[arg(long, default_value_t = RetryLimits::default().retries)]
    max_retries: u32,

    /// The pause before the first retry, if the upstream does not say; each further one is twice as
    /// long.
    #[arg(long, default_value_t = RetryLimits::default().pause.into())]
    retry_pause: Duration,

    /// The longest pause before a retry, if the upstream does not say.
    #[arg(long, default_value_t = RetryLimits::default().max_pause.into())]
    max_retry_pause: Duration,

    /// Time after the first attempt in which retries may begin. An upstream that asks for a longer
    /// pause is not asked again.
    #[arg(long, default_value_t = RetryLimits::default().total.into())]
    retry_window: Duration,

    /// Failures in a row after half of which there are no retries until answers come again. 0: no
    /// retries.
    #[arg(long, default_value_t = RetryLimits::default().budget)]
    retry_budget: u32,

    /// Answers that make up for one failure in that budget.
    #[arg(long, default_value_t = RetryLimits::default().answers_per_token, value_parser = clap::value_parser!(u32).range(1..))]
    retry_budget_answers: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Http2 {
    /// If the TLS handshake agrees on it.
    Auto,
    /// Always, also without TLS: for upstreams in a mesh that speak HTTP/2 in the clear.
    PriorKnowledge,
}

impl RequestArgs {
    pub(super) fn http(&self) -> HttpVersion {
        match self.upstream_http2 {
            Http2::Auto => HttpVersion::Negotiated,
            Http2::PriorKnowledge => HttpVersion::Http2,
        }
    }

    /// The interval and the timeout of signs of life.
    pub(super) fn pings(&self) -> (Option<std::time::Duration>, std::time::Duration) {
        (
            Some(*self.upstream_ping_interval).filter(|interval| !interval.is_zero()),
            *self.upstream_ping_timeout,
        )
    }

    pub(super) fn requests(&self) -> RequestLimits {
        RequestLimits {
            requests: size(self.max_upstream_requests),
            per_connection: size(self.max_requests_per_upstream_connection),
            queue: self.max_upstream_queue,
            wait: *self.upstream_queue_timeout,
            left: *self.abandoned_write_hold,
        }
    }

    pub(super) fn retry(&self) -> RetryLimits {
        RetryLimits {
            retries: self.max_retries,
            pause: *self.retry_pause,
            max_pause: *self.max_retry_pause,
            total: *self.retry_window,
            budget: self.retry_budget,
            answers_per_token: self.retry_budget_answers,
        }
    }
}

/// A number that its flag bounds to what fits.
fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
