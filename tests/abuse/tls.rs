//! A gateway by TLS, and who connects to it.

use std::{fs, io, net::SocketAddr, sync::Arc};

use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, pem::PemObject as _},
    },
};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::certificates::Authority;

/// A server's certificate, and whom its callers trust.
pub(crate) struct Tls {
    authority: Authority,
    connector: TlsConnector,
    _folder: TempDir,
    /// The flags of a gateway that shows it.
    pub(crate) flags: [String; 4],
}

impl Tls {
    pub(crate) fn new() -> Self {
        let (authority, folder) = (Authority::new(), TempDir::new().expect("a folder"));
        let (certificate, key) = authority.server("localhost");
        let write = |name: &str, text: String| {
            let path = folder.path().join(name);
            fs::write(&path, text).expect("a file");
            path.to_str().expect("a path of text").to_owned()
        };
        let flags = [
            "--tls-cert-file".to_owned(),
            write("tls.crt", certificate),
            "--tls-key-file".to_owned(),
            write("tls.key", key),
        ];
        let mut roots = RootCertStore::empty();
        let certificates = CertificateDer::pem_slice_iter(authority.pem().as_bytes());
        roots.add_parsable_certificates(certificates.map(|it| it.expect("PEM")));
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self {
            authority,
            connector: Arc::new(config).into(),
            _folder: folder,
            flags,
        }
    }

    /// A handshake of an attacker's.
    pub(crate) async fn connect(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = "localhost".try_into().expect("a name");
        self.connector.connect(name, stream).await
    }

    /// A connection of a caller's.
    pub(crate) fn channel(&self, address: SocketAddr) -> Channel {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.authority.pem()))
            .domain_name("localhost");
        let endpoint = Endpoint::from_shared(format!("https://{address}")).expect("a URL");
        endpoint.tls_config(tls).expect("TLS").connect_lazy()
    }
}
