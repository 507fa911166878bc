//! TLS for the listener: certificate, key and client CA from files, read again when they change.
//!
//! Must hold: a changed certificate is what the next handshake shows; open connections keep theirs.
//! Only HTTP/2 is offered, unless browsers are served.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio_rustls::rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};

use crate::reloadable::Reloadable;

/// The files of a listener's identity.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The certificate chain, PEM.
    pub certificate: PathBuf,
    /// The private key, PEM.
    pub key: PathBuf,
    /// The CA that signs clients' certificates, PEM. Without it clients are not asked for one.
    pub client_ca: Option<PathBuf>,
    /// Whether a client may come without a certificate, since it may be known by a token.
    pub client_optional: bool,
    /// Whether HTTP/1.1 is offered beside HTTP/2.
    pub http1: bool,
}

impl TlsFiles {
    /// Reads the files, and again whenever they change. Has to be called in a runtime.
    pub fn watch(self, interval: Duration) -> Result<Reloadable<ServerConfig>, String> {
        let Self {
            certificate,
            key,
            client_ca,
            client_optional,
            http1,
        } = self;
        let files = [certificate, key].into_iter().chain(client_ca).collect();
        Reloadable::new(files, interval, move |contents| {
            config(contents, client_optional, http1)
        })
    }
}

fn config(
    contents: &[Vec<u8>],
    client_optional: bool,
    http1: bool,
) -> Result<ServerConfig, String> {
    let [certificate, key, client_ca @ ..] = contents else {
        return Err("certificate or key is missing".to_owned());
    };
    let provider = Arc::new(ring::default_provider());
    let chain = certificates(certificate).map_err(|error| format!("TLS certificate: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("TLS key: {error}"))?;
    let versions = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions();
    let builder = versions.map_err(|error| error.to_string())?;
    let builder = if let [client_ca] = client_ca {
        let mut roots = RootCertStore::empty();
        for root in certificates(client_ca).map_err(|error| format!("TLS client CA: {error}"))? {
            roots
                .add(root)
                .map_err(|error| format!("TLS client CA: {error}"))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = if client_optional {
            verifier.allow_unauthenticated()
        } else {
            verifier
        };
        builder.with_client_cert_verifier(
            verifier
                .build()
                .map_err(|error| format!("TLS client CA: {error}"))?,
        )
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| format!("TLS certificate and key: {error}"))?;
    let protocols: &[&[u8]] = if http1 {
        &[b"h2", b"http/1.1"]
    } else {
        &[b"h2"]
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|error| error.to_string())?;
    if certificates.is_empty() {
        Err("no certificate in it".to_owned())
    } else {
        Ok(certificates)
    }
}
