//! The upstream and how to talk to it: what whoever runs the gateway says.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use http::HeaderMap;
use secrecy::SecretString;
use url::Url;

use super::{
    admission::RequestLimits, auth::AuthStyle, key_command::KeyCommand, retry::RetryLimits,
};
use crate::setting::{Switchable, bytes, defaults, some_time, time, time_or_never};

/// The upstream and how to talk to it.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// The URL before `/threads`, with any path prefix and query.
    pub base: Url,
    /// How a credential is sent.
    pub auth: AuthStyle,
    /// The gateway's own key. Without one the caller's credential is passed on.
    pub key: Option<SecretString>,
    /// The command that prints it, in place of [`Self::key`].
    pub key_command: Option<KeyCommand>,
    /// Headers of every request, whatever metadata its caller passes on.
    pub headers: HeaderMap,
    /// Headers of requests that have no others of these names.
    pub default_headers: HeaderMap,
    /// How requests are made.
    pub limits: UpstreamLimits,
    /// Connections that are kept for later requests where the upstream speaks HTTP/1.1, all of them
    /// together. Each keeps a buffer of up to half a MiB, which nobody's share counts.
    pub kept_connections: usize,
    /// Files that may change: a key in place of [`Self::key`], TLS roots, a client certificate.
    pub files: UpstreamFiles,
    /// How often they are looked at for changes; zero for never.
    pub reload_interval: Duration,
}

impl Upstream {
    /// The API at `base`, for which callers bring their own keys; all else as where no flag is given.
    pub fn new(base: Url) -> Self {
        Self {
            base,
            auth: AuthStyle::Bearer,
            key: None,
            key_command: None,
            headers: HeaderMap::new(),
            default_headers: HeaderMap::new(),
            limits: UpstreamLimits::default(),
            kept_connections: 16,
            files: UpstreamFiles::default(),
            reload_interval: Duration::ZERO,
        }
    }

    /// Whether the gateway has a key of its own.
    pub fn has_own_key(&self) -> bool {
        self.key.is_some() || self.key_command.is_some() || self.files.key.is_some()
    }
}

/// How requests are made, whatever upstream there is.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Upstream requests")]
pub struct UpstreamLimits {
    /// The longest time for connecting to the upstream, TLS included.
    #[arg(long, default_value = "5s", value_parser = some_time)]
    pub connect_timeout: Duration,

    /// The longest time for an upstream answer, from sending the request to the answer's last byte.
    #[arg(long, default_value = "1m", value_parser = some_time)]
    pub answer_timeout: Duration,

    /// The largest upstream answer, in bytes.
    #[arg(long, default_value_t = 16 << 20, value_parser = bytes::<1024, usize>)]
    pub max_answer_bytes: usize,

    /// The largest event of an upstream's stream, in bytes.
    #[arg(long, default_value_t = 4 << 20, value_parser = bytes::<1024, usize>)]
    pub max_event_bytes: usize,

    /// Which HTTP is spoken to the upstream. Event streams use HTTP/1.1 in any case.
    #[arg(id = "upstream-http2", long, value_enum, default_value = "auto")]
    pub http: HttpVersion,

    /// How long an upstream connection with requests on it may be silent before it is asked for a
    /// sign of life: by a ping over HTTP/2, by TCP's keepalive below HTTP/1.1. 0s: never.
    #[arg(id = "upstream-ping-interval", long, default_value = "20s", value_parser = time_or_never)]
    pub ping_interval: Switchable<Duration>,

    /// How long that sign may take before the connection is given up.
    #[arg(id = "upstream-ping-timeout", long, default_value = "10s", value_parser = some_time)]
    pub ping_timeout: Duration,

    /// The age at which connections to the upstream are not used for new requests any more, so that
    /// changed addresses are followed. 0s: never.
    // A changed address is followed within minutes, and handshakes stay rare.
    #[arg(id = "upstream-renewal", long, default_value = "5m", value_parser = time)]
    pub renewal: Duration,

    /// How many requests there may be at a time.
    #[command(flatten)]
    pub requests: RequestLimits,

    /// When failed requests are made again.
    #[command(flatten)]
    pub retry: RetryLimits,
}

impl Default for UpstreamLimits {
    fn default() -> Self {
        defaults()
    }
}

/// Files that may change while the gateway runs.
#[derive(Debug, Clone, Default)]
pub struct UpstreamFiles {
    /// The gateway's own key.
    pub key: Option<PathBuf>,
    /// CAs that sign the upstream's certificate, PEM, in place of the system's.
    pub ca: Option<PathBuf>,
    /// The gateway's certificate chain and its private key, PEM, for an upstream that asks for
    /// them.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Which HTTP is spoken to the upstream. Event streams use HTTP/1.1 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HttpVersion {
    /// If the TLS handshake agrees on it.
    #[value(name = "auto")]
    Negotiated,
    /// Always, also without TLS: for upstreams in a mesh that speak HTTP/2 in the clear.
    #[value(name = "prior-knowledge")]
    Http2,
}
