//! What every service of the contract has beside its calls: health by its name, reflection, and
//! gRPC-Web.
//!
//! Must hold: the services are those of the contract, so that a new one is a row here by itself.

use std::{collections::BTreeSet, net::TcpListener};

use prost_reflect::ServiceDescriptor;
use tokio_stream::once;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::{
    roots::contract,
    support::gateway::{Gateway, spawn_gateway},
};

const ORIGIN: &str = "https://app.example";

/// A gateway to an upstream that is not there.
async fn gateway() -> Gateway {
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = nobody.local_addr().expect("bound");
    drop(nobody);
    spawn_gateway(&format!("http://{address}"), &["--web-origins", ORIGIN]).await
}

/// The services of the contract. There are five or more.
fn services() -> Vec<ServiceDescriptor> {
    let services: Vec<_> = contract()
        .services()
        .filter(|service| service.package_name() == "runsgateway.v1")
        .collect();
    assert!(services.len() >= 5, "{services:?}");
    services
}

#[tokio::test]
async fn each_has_health_under_its_own_name() {
    let gateway = gateway().await;
    let mut health = HealthClient::new(gateway.channel());
    for service in services() {
        let service = service.full_name().to_owned();
        let answer = health.check(HealthCheckRequest {
            service: service.clone(),
        });
        let status = answer.await.expect(&service).into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service}");
    }
    gateway.drain().await;
}

#[tokio::test]
async fn each_is_listed_by_reflection() {
    let gateway = gateway().await;
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(gateway.channel());
    let answers = client.server_reflection_info(once(request)).await;
    let answer = answers.expect("answers").into_inner().message().await;
    let Some(MessageResponse::ListServicesResponse(list)) = answer
        .expect("an answer")
        .and_then(|answer| answer.message_response)
    else {
        panic!("not a list")
    };
    let listed: BTreeSet<_> = list.service.into_iter().map(|it| it.name).collect();
    for service in services() {
        assert!(listed.contains(service.full_name()), "{listed:?}");
    }
    gateway.drain().await;
}

#[tokio::test]
async fn each_call_of_each_is_answered_to_a_page() {
    let gateway = gateway().await;
    let pages = reqwest::Client::new();
    for service in services() {
        // gRPC-Web has no calls that stream both ways.
        for method in service.methods().filter(|it| !it.is_client_streaming()) {
            let path = format!("{}/{}", service.full_name(), method.name());
            let answer = pages
                .post(format!("http://{}/{path}", gateway.address()))
                .header("content-type", "application/grpc-web+proto")
                .header("origin", ORIGIN)
                // One message, without any field.
                .body(&b"\0\0\0\0\0"[..])
                .send()
                .await
                .expect("an answer");
            let header = |name| {
                answer
                    .headers()
                    .get(name)
                    .map(|it| it.to_str().expect("text"))
            };
            assert_eq!(
                header("access-control-allow-origin"),
                Some(ORIGIN),
                "{path}"
            );
            let code = header("grpc-status").map(|it| Code::from_bytes(it.as_bytes()));
            // A request that needs no field goes to the upstream, which is not there.
            let needs_nothing = matches!(method.name(), "ListAssistants" | "CreateThread");
            let expected = if needs_nothing {
                Code::Unavailable
            } else {
                Code::InvalidArgument
            };
            assert_eq!(code, Some(expected), "{path}");
        }
    }
    gateway.drain().await;
}
