//! Values that several flags take.

use std::net::{SocketAddr, ToSocketAddrs as _};

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
