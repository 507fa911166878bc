//! Certificates and keys in PEM, for the listener and towards the upstream alike.
//!
//! Must hold: an error names the flag whose file it is about and what is wrong, and holds nothing
//! of the file. A certificate that is not valid now is refused, since nobody would accept it.

use std::time::{SystemTime, UNIX_EPOCH};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use x509_cert::{Certificate, TbsCertificate, der::Decode as _, ext::pkix::ExtendedKeyUsage};

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

/// The CAs of a file, of which one at least is valid now: bundles have some that expired.
pub(crate) fn roots(flag: &str, pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let certificates = certificates(flag, pem)?;
    let ended = |root: &CertificateDer<'static>| {
        // One that is damaged is told of below.
        let root = Certificate::from_der(root).ok()?;
        let end = root.tbs_certificate().validity().not_after;
        (end.to_system_time() < SystemTime::now()).then_some(end)
    };
    let ended: Option<Vec<_>> = certificates.iter().map(ended).collect();
    if let Some(last) = ended.and_then(|mut ended| ended.pop()) {
        return Err(format!(
            "{flag}: the CA has expired ({last}): name its successor"
        ));
    }
    for root in certificates {
        let added = roots.add(root);
        added.map_err(|error| format!("{flag}: a certificate in it is damaged: {error}"))?;
    }
    Ok(roots)
}

/// What a certificate is shown as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Server,
    Client,
}

impl Use {
    /// Whether a certificate may be used so. One that names no uses has all.
    fn is_allowed(self, certificate: &TbsCertificate) -> bool {
        const ANY: &str = "2.5.29.37.0";
        let own = match self {
            Self::Server => "1.3.6.1.5.5.7.3.1",
            Self::Client => "1.3.6.1.5.5.7.3.2",
        };
        let uses = certificate.get_extension::<ExtendedKeyUsage>();
        uses.ok()
            .flatten()
            .is_none_or(|(_, ExtendedKeyUsage(uses))| {
                let mut uses = uses.iter().map(ToString::to_string);
                uses.any(|used| used == own || used == ANY)
            })
    }
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

/// The chain of a file, which is shown as `shown`.
pub(crate) fn own_chain(flag: &str, pem: &[u8], shown: Use) -> Result<OwnChain, String> {
    let chain = certificates(flag, pem)?;
    let leaf = Certificate::from_der(&chain[0])
        .map_err(|_| format!("{flag}: its first certificate is damaged: it is PEM of no X.509"))?;
    let leaf = leaf.tbs_certificate();
    if !shown.is_allowed(leaf) {
        let whose = match shown {
            Use::Server => "a server's",
            Use::Client => "a client's",
        };
        return Err(format!(
            "{flag}: the certificate may not be used as {whose} (extended key usage)"
        ));
    }
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
