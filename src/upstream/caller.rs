//! For whom a request is made.
//!
//! Must hold: callers share an answer only if the upstream would show both the same.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use super::caller_mark::CallerMark;
use crate::{
    error::Error,
    shares::{Credential, HeldBytes, Owner},
    telemetry,
};

/// What a caller adds to the requests made for it.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// Headers to pass on: the allowed ones of its metadata, with its credential if it is to be
    /// passed on.
    pub headers: HeaderMap,
    /// When its call has to be over. Nothing is waited for that ends later.
    pub deadline: Option<Instant>,
    /// It makes failed calls again by itself: the gateway does not.
    pub retries: bool,
    /// The call that requests are made for.
    pub call: telemetry::Call,
    /// Who holds what is held for it.
    pub owner: Owner,
    /// The bytes that are.
    pub held: HeldBytes,
    /// Its own credential, whose share depends on what the upstream says to it.
    pub credential: Option<Credential>,
    /// Its name, if callers are told apart.
    pub name: Option<Arc<str>>,
    /// What marks what it makes, if callers are isolated from each other.
    pub mark: Option<CallerMark>,
}

/// The header that names one write, for services that know it.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Forwarded headers that say nothing about what a caller may see.
const ANONYMOUS_HEADERS: [&str; 4] = [
    IDEMPOTENCY_KEY,
    "traceparent",
    "tracestate",
    "x-client-request-id",
];

impl Caller {
    /// The upstream has answered a request: what that says of the caller's credential.
    pub(super) fn answered(&self, error: Option<&Error>) {
        match (&self.credential, error) {
            (Some(credential), None) => credential.accept(),
            (Some(credential), Some(error)) if error.is_credential_rejected() => {
                credential.reject();
            }
            _ => {}
        }
    }

    /// The headers that may change what the upstream shows, in one order, and the caller's mark:
    /// callers with the same ones may share an answer.
    pub fn identity(&self) -> Identity {
        let relevant = self
            .headers
            .iter()
            .filter(|(name, _)| !ANONYMOUS_HEADERS.contains(&name.as_str()));
        let mut identity: Vec<_> = relevant
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        identity
            .sort_by(|a, b| (a.0.as_str(), a.1.as_bytes()).cmp(&(b.0.as_str(), b.1.as_bytes())));
        Identity(identity, self.mark)
    }
}

/// Who a caller is to the upstream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity(Vec<(HeaderName, HeaderValue)>, Option<CallerMark>);

impl Identity {
    /// The headers that decide what the caller may see, in a fixed order.
    pub fn headers(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.0.iter().map(|(name, value)| (name, value))
    }

    /// A caller with this identity, no deadline, and a patience of its own.
    pub fn caller(&self) -> Caller {
        Caller {
            headers: self.0.iter().cloned().collect(),
            deadline: None,
            retries: true,
            call: telemetry::Call::default(),
            owner: Owner::default(),
            held: HeldBytes::default(),
            credential: None,
            name: None,
            mark: self.1,
        }
    }
}
