//! A connection to a running gateway, for the commands that call one.

use std::{
    error::Error,
    fmt, fs, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::config::GatewayAddress;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long nothing may come before the peer is asked whether it is there, and how long it may take
/// to say so.
const PING: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));

/// Why there is no connection.
#[derive(Debug)]
pub(crate) struct NoConnection {
    line: String,
    /// What to try, if somebody is there.
    pub(crate) hint: Option<&'static str>,
}

impl NoConnection {
    fn new(line: String) -> Self {
        Self { line, hint: None }
    }
}

impl fmt::Display for NoConnection {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.line)
    }
}

impl Error for NoConnection {}

/// A connection that stands, and comes again by itself if it breaks.
///
/// # Errors
///
/// A file that cannot be read, an address where nobody answers: one line that says so.
pub(crate) async fn connect(gateway: &GatewayAddress) -> Result<Channel, NoConnection> {
    let address = reachable(gateway.addr);
    let tls = tls(gateway).map_err(NoConnection::new)?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let fails = |error: &(dyn Error + 'static)| {
        let cause = innermost(error);
        let io = cause.downcast_ref::<io::Error>();
        let is_there = io.map(io::Error::kind) != Some(io::ErrorKind::ConnectionRefused);
        let of_certificate = io.and_then(io::Error::get_ref).and_then(of_certificate);
        NoConnection {
            line: format!("{address}: {cause}"),
            hint: is_there.then(|| of_certificate.unwrap_or_else(|| hint(gateway))),
        }
    };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"));
    let mut endpoint = endpoint
        .map_err(|error| fails(&error))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1);
    if let Some(tls) = tls {
        endpoint = endpoint.tls_config(tls).map_err(|error| fails(&error))?;
    }
    endpoint.connect().await.map_err(|error| fails(&error))
}

/// What to try if the peer is there and does not understand.
pub(crate) fn hint(gateway: &GatewayAddress) -> &'static str {
    match (&gateway.tls_ca_file, &gateway.client_cert_file) {
        (None, _) => "if it speaks TLS: give --tls-ca-file",
        (_, None) => "if it asks for client certificates: give --client-cert-file",
        _ => "does it accept this client certificate?",
    }
}

/// What to try if it is the gateway's certificate that is refused.
fn of_certificate(why: &(dyn Error + Send + Sync + 'static)) -> Option<&'static str> {
    use rustls::{CertificateError as C, Error as E};
    match why.downcast_ref()? {
        E::InvalidCertificate(C::NotValidForName | C::NotValidForNameContext { .. }) => {
            Some("its certificate is for another name: is --tls-name right?")
        }
        E::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => {
            Some("its certificate is of another CA: is --tls-ca-file right?")
        }
        E::InvalidCertificate(_) => Some("its certificate cannot be used"),
        _ => None,
    }
}

fn tls(gateway: &GatewayAddress) -> Result<Option<ClientTlsConfig>, String> {
    let Some(ca) = &gateway.tls_ca_file else {
        return Ok(None);
    };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read("--tls-ca-file", ca)?))
        .domain_name(&gateway.tls_name);
    if let (Some(chain), Some(key)) = (&gateway.client_cert_file, &gateway.client_key_file) {
        let chain = read("--client-cert-file", chain)?;
        tls = tls.identity(Identity::from_pem(chain, read("--client-key-file", key)?));
    }
    Ok(Some(tls))
}

/// A file that a flag names. An error holds nothing of it.
pub(crate) fn read(flag: &str, file: &Path) -> Result<Vec<u8>, String> {
    fs::read(file).map_err(|error| format!("{flag} {}: {error}", file.display()))
}

/// Whoever listens everywhere listens here, too.
pub(crate) fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            Ipv4Addr::LOCALHOST.into()
        } else {
            Ipv6Addr::LOCALHOST.into()
        });
    }
    address
}

/// The cause that says why.
pub(crate) fn innermost<'a>(mut error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    while let Some(source) = error.source() {
        error = source;
    }
    error
}
