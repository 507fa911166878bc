//! A question to a running gateway: does it serve? For container probes where there is no shell and
//! no other client.

use std::{error::Error, net::SocketAddr, time::Duration};

use tonic::{Request, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    config::{GatewayAddress, HealthcheckArgs},
    connection::{connect, hint, innermost, reachable},
};

/// How long the answer may take.
const TIME: Duration = Duration::from_secs(3);

/// Asks. Fails, in words for a person, if there is no answer or another one than that it serves.
///
/// The admin port is asked where it is known and nothing was said of gRPC's TLS: it needs no
/// certificate, and strangers cannot fill it.
pub async fn run(args: HealthcheckArgs) -> Result<(), Box<dyn Error + Send + Sync>> {
    match args.admin_addr {
        Some(admin) if args.gateway.tls_ca_file.is_none() => ask_admin(reachable(admin)).await,
        _ => ask_grpc(&args.gateway).await,
    }
}

async fn ask_admin(address: SocketAddr) -> Result<(), Box<dyn Error + Send + Sync>> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(TIME)
        .build()?;
    let answer = client.get(format!("http://{address}/readyz")).send().await;
    let answer = answer.map_err(|error| {
        let cause = innermost(&error);
        let is_other = |it: &hyper::Error| it.is_parse() || it.is_incomplete_message();
        let hint = if cause.downcast_ref().is_some_and(is_other) {
            " (is this the gRPC port?)"
        } else {
            ""
        };
        format!("{address}: {cause}{hint}")
    })?;
    if answer.status().is_success() {
        Ok(())
    } else {
        Err(format!("{address}: {}", answer.status()).into())
    }
}

async fn ask_grpc(gateway: &GatewayAddress) -> Result<(), Box<dyn Error + Send + Sync>> {
    let address = reachable(gateway.addr);
    let with_admin = |hint| format!(" ({hint}; or ask its admin port by --admin-addr)");
    let channel = connect(gateway).await.map_err(|error| {
        let hint = error.hint.map(with_admin).unwrap_or_default();
        format!("{error}{hint}")
    })?;
    let hint = with_admin(hint(gateway));
    let mut request = Request::new(HealthCheckRequest::default());
    request.set_timeout(TIME);
    let answer = HealthClient::new(channel).check(request).await;
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
