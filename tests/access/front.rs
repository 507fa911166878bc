//! TLS in front of a scripted upstream, which has none itself.

use std::{net::SocketAddr, sync::Arc};

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::WebPkiClientVerifier,
    },
};

use crate::{certificates::Authority, support::upstream::Upstream};

/// TLS in front of an upstream. Lives as long as the test's runtime.
pub(crate) async fn front(
    upstream: &Upstream,
    certificate: (String, String),
    clients: Option<&Authority>,
) -> SocketAddr {
    let certificates = |pem: &str| {
        CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .expect("PEM")
    };
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("versions");
    let builder = match clients {
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(certificates(authority.pem()));
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .expect("a verifier");
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let key = PrivateKeyDer::from_pem_slice(certificate.1.as_bytes()).expect("a key");
    let acceptor = TlsAcceptor::from(Arc::new(
        builder
            .with_single_cert(certificates(&certificate.0), key)
            .expect("a certificate"),
    ));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let (address, behind) = (
        listener.local_addr().expect("an address"),
        upstream.address(),
    );
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A handshake that fails is the gateway's to tell.
                let Ok(mut tls) = acceptor.accept(stream).await else {
                    return;
                };
                let mut plain = TcpStream::connect(behind).await.expect("the upstream");
                let _ = tokio::io::copy_bidirectional(&mut tls, &mut plain).await;
            });
        }
    });
    address
}
