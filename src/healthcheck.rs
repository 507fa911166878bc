//! A question to a running gateway: does it serve? For container probes where there is no shell and
//! no other client.

use std::{error::Error, fs, time::Duration};

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::config::HealthcheckArgs;

/// How long the answer may take.
const TIME: Duration = Duration::from_secs(3);

/// Asks. Fails, in words for a person, if there is no answer or another one than SERVING.
pub async fn run(args: HealthcheckArgs) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut address = args.addr;
    if address.ip().is_unspecified() {
        // Whoever listens everywhere listens here, too.
        address.set_ip(if address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    let scheme = if args.tls_ca_file.is_some() {
        "https"
    } else {
        "http"
    };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))?
        .connect_timeout(TIME)
        .timeout(TIME);
    if let Some(ca) = &args.tls_ca_file {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let pem = fs::read(ca).map_err(|error| format!("{}: {error}", ca.display()))?;
        endpoint = endpoint.tls_config(
            ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(pem))
                .domain_name(args.tls_name),
        )?;
    }
    let channel = endpoint
        .connect()
        .await
        .map_err(|error| format!("{address}: {}", innermost(&error)))?;
    let answer = HealthClient::new(channel)
        .check(HealthCheckRequest::default())
        .await;
    let status = answer
        .map_err(|status| format!("{address}: {:?}: {}", status.code(), status.message()))?
        .into_inner()
        .status();
    if status == ServingStatus::Serving {
        Ok(())
    } else {
        Err(format!("{address}: {}", status.as_str_name()).into())
    }
}

/// The cause that says why.
fn innermost<'a>(mut error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    while let Some(source) = error.source() {
        error = source;
    }
    error
}
