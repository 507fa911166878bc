//! Callers that a mesh names: its proxies say whose call it is, in a header.
//!
//! Must hold: the header is believed only on connections from peers that configuration names. From
//! anybody else it is taken off before the call goes on.

use std::{net::IpAddr, str::FromStr};

use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use super::{Peer, Tenant, xfcc};

const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const L5D_CLIENT_ID: HeaderName = HeaderName::from_static("l5d-client-id");

/// The longest name of a caller, in bytes: that of a SPIFFE id.
pub(super) const MAX_NAME: usize = 2048;

/// The header by which a mesh's proxies say who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MeshIdentity {
    /// `x-forwarded-client-cert` of Envoy, and so of Istio.
    Xfcc,
    /// `l5d-client-id` of Linkerd.
    L5dClientId,
}

impl MeshIdentity {
    /// The header's name.
    pub fn header(self) -> HeaderName {
        match self {
            Self::Xfcc => XFCC,
            Self::L5dClientId => L5D_CLIENT_ID,
        }
    }
}

impl FromStr for MeshIdentity {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "xfcc" => Ok(Self::Xfcc),
            "l5d-client-id" => Ok(Self::L5dClientId),
            _ => Err("must be xfcc or l5d-client-id"),
        }
    }
}

/// A peer whose word is taken for who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MeshPeer {
    /// Whatever connects from this machine or pod.
    Loopback,
    /// Whatever connects from these addresses.
    Network(IpNet),
    /// Whoever shows a certificate of the client CA with this URI, DNS or common name.
    Name(String),
}

impl FromStr for MeshPeer {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text == "loopback" {
            return Ok(Self::Loopback);
        }
        if let Some(name) = text.strip_prefix("name:") {
            return match name.trim() {
                "" => Err("the name is empty"),
                name => Ok(Self::Name(name.to_owned())),
            };
        }
        let address = text.parse::<IpAddr>().map(IpNet::from);
        let network = address
            .or_else(|_| text.parse::<IpNet>())
            .map_err(|_| "must be `loopback`, a CIDR such as 10.1.0.0/16, or `name:NAME`")?;
        if network.prefix_len() == 0 {
            return Err("would believe everybody");
        }
        Ok(Self::Network(network))
    }
}

/// The mesh: what its proxies say, and which peers they are.
#[derive(Debug, Clone)]
pub struct Mesh {
    /// The header that names the caller.
    pub identity: MeshIdentity,
    /// The peers that are believed.
    pub peers: Vec<MeshPeer>,
}

impl Mesh {
    /// Whether this peer is believed.
    pub(super) fn believes(&self, peer: &Peer) -> bool {
        self.peers.iter().any(|known| match known {
            MeshPeer::Loopback => peer.address.is_loopback(),
            MeshPeer::Network(network) => network.contains(&peer.address),
            MeshPeer::Name(name) => has_name(peer, name),
        })
    }

    /// Whether this peer's certificate says that it is a proxy, and so not who calls.
    pub(super) fn is_proxy(&self, peer: &Peer) -> bool {
        self.peers
            .iter()
            .any(|known| matches!(known, MeshPeer::Name(name) if has_name(peer, name)))
    }

    /// Takes off what this peer has no business to say. True if there was anything.
    pub(super) fn strip(&self, peer: &Peer, headers: &mut HeaderMap) -> bool {
        if self.believes(peer) {
            return false;
        }
        // Of a header that came twice this takes off both.
        let removed = [XFCC, L5D_CLIENT_ID].map(|name| headers.remove(name).is_some());
        removed.contains(&true)
    }

    /// Who calls, if this peer is believed and says it.
    pub(super) fn caller(
        &self,
        peer: &Peer,
        headers: &HeaderMap,
    ) -> Option<Result<Tenant, &'static str>> {
        if !self.believes(peer) {
            return None;
        }
        let mut values = headers.get_all(self.identity.header()).iter();
        let (value, more) = (values.next()?, values.next());
        // Proxies write one. With two, one is somebody else's, and nobody knows which.
        let named = if more.is_some() {
            Err("the mesh's header came twice: let the proxy set it, and only once")
        } else {
            self.name(value)
        };
        Some(named.map(|name| Tenant(name.into())))
    }

    fn name(&self, value: &HeaderValue) -> Result<String, &'static str> {
        let name = match self.identity {
            MeshIdentity::Xfcc => xfcc::caller(value.as_bytes())?,
            MeshIdentity::L5dClientId => value
                .to_str()
                .ok()
                .map(str::trim)
                .filter(|name| !name.is_empty())
                .ok_or("l5d-client-id is empty, or not text")?
                .to_owned(),
        };
        if name.len() > MAX_NAME {
            return Err("the name that the mesh gives the caller is too long (2048 bytes)");
        }
        Ok(name)
    }
}

fn has_name(peer: &Peer, name: &String) -> bool {
    peer.names
        .as_ref()
        .is_some_and(|names| names.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_loopback_a_network_or_a_name() {
        let cases = [
            ("loopback", Some(MeshPeer::Loopback)),
            (
                "name:spiffe://d/p",
                Some(MeshPeer::Name("spiffe://d/p".to_owned())),
            ),
            (
                " 10.1.0.0/16 ",
                "10.1.0.0/16".parse().ok().map(MeshPeer::Network),
            ),
            (
                "10.1.2.3",
                "10.1.2.3/32".parse().ok().map(MeshPeer::Network),
            ),
            ("fd00::/8", "fd00::/8".parse().ok().map(MeshPeer::Network)),
            ("0.0.0.0/0", None),
            ("::/0", None),
            ("name:", None),
            ("proxy.example", None),
            ("10.1.0.0/33", None),
            ("", None),
        ];
        for (text, peer) in cases {
            assert_eq!(text.parse().ok(), peer, "{text}");
        }
    }

    #[test]
    fn only_peers_that_are_named_are_believed() {
        let mesh = Mesh {
            identity: MeshIdentity::Xfcc,
            peers: ["loopback", "10.1.0.0/16", "fd00::/8", "name:proxy"]
                .map(|peer| peer.parse().expect("a peer"))
                .into(),
        };
        let cases = [
            ("127.0.0.6", None, true),
            ("::1", None, true),
            // As a listener of both families sees addresses of IPv4.
            ("::ffff:127.0.0.1", None, true),
            ("::ffff:10.1.2.3", None, true),
            ("10.1.255.1", None, true),
            ("10.2.0.1", None, false),
            ("::ffff:10.2.0.1", None, false),
            ("fd12::1", None, true),
            ("fe80::1", None, false),
            ("10.2.0.1", Some("proxy"), true),
            ("10.2.0.1", Some("proxy.example"), false),
        ];
        for (address, name, believed) in cases {
            let mut peer = Peer::new(address.parse().expect("an address"), None);
            peer.names = name.map(|name| [name.to_owned()].into());
            assert_eq!(mesh.believes(&peer), believed, "{address} {name:?}");
        }
    }
}
