//! What is known of the other side of a connection: its address, and the names in its certificate.

use std::{net::IpAddr, sync::Arc};

use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::Account;
use crate::shares::Owner;

/// The other side of a connection.
#[derive(Debug, Clone)]
pub(in crate::server) struct Peer {
    /// Its address. One of IPv4 is written so, also on a listener of IPv6.
    pub(super) address: IpAddr,
    /// The names in its certificate, if it has shown one.
    pub(super) names: Option<Arc<[String]>>,
}

impl Peer {
    /// The peer whose certificate was verified in the handshake.
    pub(in crate::server) fn new(
        address: IpAddr,
        certificate: Option<&CertificateDer<'_>>,
    ) -> Self {
        Self {
            address: address.to_canonical(),
            names: certificate.map(|certificate| names(certificate).into()),
        }
    }

    /// The share of all calls from this address.
    pub(in crate::server) fn account(&self) -> Account {
        Account {
            owner: Owner::of(&self.address),
            credential: None,
            name: None,
            needs_credential: false,
        }
    }
}

/// The names in a certificate.
fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let alternative = alternative
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
            _ => None,
        });
    let common = certificate
        .subject()
        .iter_common_name()
        .filter_map(|name| name.as_str().ok().map(str::to_owned));
    alternative.chain(common).collect()
}
