//! Certificates and keys in PEM, for the listener and towards the upstream alike.
//!
//! Must hold: an error names the flag whose file it is about and what is wrong, and holds nothing
//! of the file. A certificate that is not valid now is refused, since nobody would accept it.

use std::time::{SystemTime, UNIX_EPOCH};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use x509_cert::{Certificate, der::Decode as _};

/// The certificates of a file, one at least.
pub(crate) fn certificates(flag: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|error| format!("{flag}: not PEM: {error}"))?;
    if certificates.is_empty() {
        Err(format!("{flag}: there is no certificate in it (PEM)"))
    } else {
        Ok(certificates)
    }
}

/// The CAs of a file.
pub(crate) fn roots(flag: &str, pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for root in certificates(flag, pem)? {
        let added = roots.add(root);
        added.map_err(|error| format!("{flag}: a certificate in it is damaged: {error}"))?;
    }
    Ok(roots)
}

/// A certificate chain whose first certificate is valid now.
#[derive(Debug)]
pub(crate) struct OwnChain {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// When its first certificate expires.
    pub(crate) expires: SystemTime,
    /// Whose it is and until when, for people.
    pub(crate) summary: String,
}

impl OwnChain {
    /// When it expires, in Unix seconds.
    pub(crate) fn expiry(&self) -> i64 {
        let since = self.expires.duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    }
}

/// The chain of a file.
pub(crate) fn own_chain(flag: &str, pem: &[u8]) -> Result<OwnChain, String> {
    let chain = certificates(flag, pem)?;
    let leaf = Certificate::from_der(&chain[0])
        .map_err(|_| format!("{flag}: its first certificate is damaged: it is PEM of no X.509"))?;
    let leaf = leaf.tbs_certificate();
    let (begins, ends) = (leaf.validity().not_before, leaf.validity().not_after);
    let (now, expires) = (SystemTime::now(), ends.to_system_time());
    if expires < now {
        Err(format!(
            "{flag}: the certificate has expired ({ends}): renew it"
        ))
    } else if begins.to_system_time() > now {
        Err(format!(
            "{flag}: the certificate is not valid yet ({begins}): is the clock right?"
        ))
    } else {
        let subject = leaf.subject().to_string();
        let summary = format!("certificate of {subject:?} until {ends}");
        Ok(OwnChain {
            chain,
            expires,
            summary,
        })
    }
}

/// The private key of a file.
pub(crate) fn private_key(flag: &str, pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem)
        .map_err(|error| format!("{flag}: there is no private key in it (PEM): {error}"))
}
