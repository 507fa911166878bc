//! The upstream and how to talk to it: what whoever runs the gateway says.

use std::{path::PathBuf, time::Duration};

use http::HeaderMap;
use secrecy::SecretString;
use url::Url;

use super::{
    admission::RequestLimits, auth::AuthStyle, key_command::KeyCommand, retry::RetryLimits,
};

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
    /// Headers of every request.
    pub headers: HeaderMap,
    /// How long connecting may take, TLS included.
    pub connect_timeout: Duration,
    /// How long an answer may take, from sending the request to the last byte.
    pub answer_timeout: Duration,
    /// The largest answer, in bytes.
    pub max_answer_bytes: usize,
    /// The largest event of a stream, in bytes.
    pub max_event_bytes: usize,
    /// Which HTTP is spoken.
    pub http: HttpVersion,
    /// How long a connection with requests on it may be silent before it is asked for a sign of
    /// life: a ping over HTTP/2, TCP's keepalive below HTTP/1.1. `None`: never.
    pub ping_interval: Option<Duration>,
    /// How long a sign of life may take; without it the connection is over.
    pub ping_timeout: Duration,
    /// How many requests there may be at a time.
    pub requests: RequestLimits,
    /// Connections that are kept for later requests where the upstream speaks HTTP/1.1, all of them
    /// together. Each keeps a buffer of up to half a MiB, which nobody's share counts.
    pub kept_connections: usize,
    /// When failed requests are made again.
    pub retry: RetryLimits,
    /// Files that may change: a key in place of [`Self::key`], TLS roots, a client certificate.
    pub files: UpstreamFiles,
    /// How often they are looked at for changes.
    pub reload_interval: Duration,
    /// The age at which connections are not used for new requests any more.
    pub renewal: Duration,
}

impl Upstream {
    /// Whether the gateway has a key of its own.
    pub fn has_own_key(&self) -> bool {
        self.key.is_some() || self.key_command.is_some() || self.files.key.is_some()
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpVersion {
    /// What the TLS handshake agrees on. Without TLS, HTTP/1.1.
    Negotiated,
    /// HTTP/2, also without TLS.
    Http2,
}
