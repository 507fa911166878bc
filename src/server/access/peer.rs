//! What is known of the other side of a connection: its address, and the names in its certificate.

use std::{net::IpAddr, sync::Arc};

use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_cert::{
    Certificate,
    der::{Decode as _, oid::db::rfc4519::COMMON_NAME},
    ext::pkix::{
        SubjectAltName,
        name::{DirectoryString, GeneralName},
    },
};

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
    let Ok(certificate) = Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let certificate = certificate.tbs_certificate();
    let alternative = certificate.get_extension::<SubjectAltName>();
    let alternative = alternative.ok().flatten();
    let alternative = alternative.into_iter().flat_map(|(_, names)| names.0);
    let alternative = alternative.filter_map(|name| match name {
        GeneralName::DnsName(name) | GeneralName::UniformResourceIdentifier(name) => {
            Some(name.to_string())
        }
        _ => None,
    });
    let subject = certificate.subject().iter();
    let common = subject
        .filter(|attribute| attribute.oid == COMMON_NAME)
        .filter_map(|attribute| DirectoryString::try_from(&attribute.value).ok())
        .map(String::from);
    alternative.chain(common).collect()
}
