//! Values that several flags take.

use std::net::{SocketAddr, ToSocketAddrs as _};

use url::Url;

use super::invalid::Invalid;

/// An address to listen on: numbers, or a name that is resolved now.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let resolved = text
        .parse()
        .ok()
        .or_else(|| text.to_socket_addrs().ok()?.next());
    resolved.ok_or_else(|| "not an address, such as 127.0.0.1:50051 or [::]:50051".to_owned())
}

/// Headers that say how a message stands on its connection. Whoever sets them from outside makes
/// another request of it than was meant.
pub(super) const FRAMING: [&str; 11] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The base of an API, which `flag` gives, without a key in it.
pub(super) fn base_url(flag: &str, text: &str) -> Result<Url, Invalid> {
    // Not by clap, which would repeat a URL that may hold a key.
    let base: Url = text
        .parse()
        .map_err(|error| Invalid::new(format!("{flag} is not a URL: {error}")))?;
    if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
        return Err(Invalid::new(format!(
            "{flag} must begin with http:// or https:// and name a host"
        )));
    }
    if !base.username().is_empty() || base.password().is_some() {
        let key_flag = flag.replace("-url", "-api-key-file");
        return Err(Invalid::new(format!(
            "{flag} must not hold a user or password: give the key by {key_flag}"
        )));
    }
    if base.fragment().is_some() {
        return Err(Invalid::new(format!(
            "{flag} must not hold a fragment (#…): no server sees it"
        )));
    }
    Ok(base)
}
