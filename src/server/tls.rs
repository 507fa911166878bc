//! TLS for the listener: certificate, key and client CA from files, read again when they change.
//!
//! Must hold: a changed certificate is what the next handshake shows; open connections keep theirs.
//! Only HTTP/2 is offered, unless browsers are served.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio_rustls::rustls::{ServerConfig, crypto::ring, server::WebPkiClientVerifier};

use crate::{
    pem,
    reloadable::{Loaded, NamedFile, Reloadable, Source},
    telemetry::Telemetry,
};

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

const CERTIFICATE: &str = "--tls-cert-file";
const KEY: &str = "--tls-key-file";
const CLIENT_CA: &str = "--tls-client-ca-file";

impl TlsFiles {
    /// Reads the files, and again whenever they change. Has to be called in a runtime.
    pub fn watch(
        self,
        interval: Duration,
        telemetry: &Telemetry,
    ) -> Result<Reloadable<ServerConfig>, String> {
        let Self {
            certificate,
            key,
            client_ca,
            client_optional,
            http1,
        } = self;
        let named = |flag, path| NamedFile { flag, path };
        let own = [named(CERTIFICATE, certificate), named(KEY, key)];
        let client_ca = client_ca.map(|path| named(CLIENT_CA, path));
        let metrics = telemetry.metrics();
        let expiry = metrics.certificate_expiry("server");
        let source = Source {
            what: "server certificate",
            files: own.into_iter().chain(client_ca).collect(),
            interval,
            renewal: Duration::ZERO,
            failing: metrics.reload_failing("server certificate"),
        };
        Reloadable::new(source, move |contents| {
            let (loaded, ends) = config(contents, client_optional, http1)?;
            expiry.set(ends);
            Ok(loaded)
        })
    }
}

/// The configuration, and when the certificate expires, in Unix seconds.
fn config(
    contents: &[Vec<u8>],
    client_optional: bool,
    http1: bool,
) -> Result<(Loaded<ServerConfig>, i64), String> {
    let [certificate, key, client_ca @ ..] = contents else {
        return Err("certificate or key is missing".to_owned());
    };
    let provider = Arc::new(ring::default_provider());
    let own = pem::own_chain(CERTIFICATE, certificate, pem::Use::Server)?;
    let (ends, expires, mut summary) = (own.expiry(), own.expires, own.summary);
    let key = pem::private_key(KEY, key)?;
    let versions = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions();
    let builder = versions.map_err(|error| error.to_string())?;
    let builder = if let [client_ca] = client_ca {
        let roots = Arc::new(pem::roots(CLIENT_CA, client_ca)?);
        summary = format!("{summary}, {} CAs of clients", roots.len());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
        let verifier = if client_optional {
            verifier.allow_unauthenticated()
        } else {
            verifier
        };
        let verifier = verifier.build();
        builder.with_client_cert_verifier(
            verifier.map_err(|error| format!("{CLIENT_CA}: cannot be used: {error}"))?,
        )
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder
        .with_single_cert(own.chain, key)
        .map_err(|error| format!("{KEY} is not the key of {CERTIFICATE}: {error}"))?;
    let protocols: &[&[u8]] = if http1 {
        &[b"h2", b"http/1.1"]
    } else {
        &[b"h2"]
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let loaded = Loaded {
        value: config,
        summary,
        expires: Some(expires),
    };
    Ok((loaded, ends))
}
