//! A question to a running gateway: does it serve? For container probes where there is no shell and
//! no other client.

use std::{
    error::Error,
    fs, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tonic::{
    Status,
    transport::{Certificate, ClientTlsConfig, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::config::HealthcheckArgs;

/// How long the answer may take.
const TIME: Duration = Duration::from_secs(3);

/// Asks. Fails, in words for a person, if there is no answer or another one than that it serves.
///
/// The admin port is asked where it is known and nothing was said of gRPC's TLS: it needs no
/// certificate, and strangers cannot fill it.
pub async fn run(args: HealthcheckArgs) -> Result<(), Box<dyn Error + Send + Sync>> {
    match args.admin_addr {
        Some(admin) if args.tls_ca_file.is_none() => ask_admin(here(admin)).await,
        _ => ask_grpc(args).await,
    }
}

/// Whoever listens everywhere listens here, too.
fn here(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            Ipv4Addr::LOCALHOST.into()
        } else {
            Ipv6Addr::LOCALHOST.into()
        });
    }
    address
}

async fn ask_admin(address: SocketAddr) -> Result<(), Box<dyn Error + Send + Sync>> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(TIME)
        .build()?;
    let answer = client.get(format!("http://{address}/readyz")).send().await;
    let answer = answer.map_err(|error| format!("{address}: {}", innermost(&error)))?;
    if answer.status().is_success() {
        Ok(())
    } else {
        Err(format!("{address}: {}", answer.status()).into())
    }
}

async fn ask_grpc(args: HealthcheckArgs) -> Result<(), Box<dyn Error + Send + Sync>> {
    let address = here(args.addr);
    let tls = args.tls_ca_file.is_some();
    let scheme = if tls { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))?
        .connect_timeout(TIME)
        .timeout(TIME);
    if let Some(ca) = &args.tls_ca_file {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let pem =
            fs::read(ca).map_err(|error| format!("--tls-ca-file {}: {error}", ca.display()))?;
        endpoint = endpoint.tls_config(
            ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(pem))
                .domain_name(args.tls_name),
        )?;
    }
    let hint = if tls {
        " (if it asks for client certificates: ask its admin port by --admin-addr)"
    } else {
        " (if it speaks TLS: ask its admin port by --admin-addr, or give --tls-ca-file)"
    };
    let channel = endpoint.connect().await.map_err(|error| {
        let cause = innermost(&error);
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        // Nobody is there, whatever would be spoken.
        let nobody = io == Some(io::ErrorKind::ConnectionRefused);
        format!("{address}: {cause}{}", if nobody { "" } else { hint })
    })?;
    let answer = HealthClient::new(channel)
        .check(HealthCheckRequest::default())
        .await;
    let status = answer
        .map_err(|status| format!("{address}: {}{hint}", said(&status)))?
        .into_inner()
        .status();
    if status == ServingStatus::Serving {
        Ok(())
    } else {
        Err(format!("{address}: {}", status.as_str_name()).into())
    }
}

/// What a status says: the cause, if it is the client's own.
fn said(status: &Status) -> String {
    match status.source() {
        Some(source) => innermost(source).to_string(),
        None => format!("{:?}: {}", status.code(), status.message()),
    }
}

/// The cause that says why.
fn innermost<'a>(mut error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    while let Some(source) = error.source() {
        error = source;
    }
    error
}
