//! What tools like grpcurl see.

use std::collections::BTreeSet;

use prost::Message;
use prost_types::FileDescriptorProto;
use runs_gateway::server::Limits;
use tokio_stream::once;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::harness::Gateway;

const SERVICES: [&str; 8] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "runsgateway.v1.AssistantService",
    "runsgateway.v1.MessageService",
    "runsgateway.v1.RunService",
    "runsgateway.v1.RunStepService",
    "runsgateway.v1.ThreadService",
];

/// One version of reflection, as the two differ in nothing but their package.
macro_rules! reflection {
    ($version:ident) => {
        mod $version {
            use super::*;
            use tonic_reflection::pb::$version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest,
                server_reflection_response::MessageResponse,
            };

            async fn ask(gateway: &Gateway, question: MessageRequest) -> MessageResponse {
                let request = ServerReflectionRequest {
                    host: String::new(),
                    message_request: Some(question),
                };
                let mut client = ServerReflectionClient::new(gateway.channel().await);
                let mut answers = client
                    .server_reflection_info(once(request))
                    .await
                    .unwrap()
                    .into_inner();
                answers
                    .message()
                    .await
                    .unwrap()
                    .unwrap()
                    .message_response
                    .unwrap()
            }

            #[tokio::test]
            async fn lists_every_service_and_describes_it_with_comments() {
                let gateway = Gateway::start(Limits::default()).await;
                let MessageResponse::ListServicesResponse(list) =
                    ask(&gateway, MessageRequest::ListServices(String::new())).await
                else {
                    panic!("not a list")
                };
                let listed: BTreeSet<_> = list
                    .service
                    .iter()
                    .map(|service| service.name.as_str())
                    .collect();
                assert_eq!(listed, BTreeSet::from(SERVICES));

                for service in SERVICES {
                    let MessageResponse::FileDescriptorResponse(files) = ask(
                        &gateway,
                        MessageRequest::FileContainingSymbol(service.to_owned()),
                    )
                    .await
                    else {
                        panic!("{service} is not described")
                    };
                    let file =
                        FileDescriptorProto::decode(&files.file_descriptor_proto[0][..]).unwrap();
                    assert!(
                        service.starts_with(file.package()),
                        "{service} in {}",
                        file.package()
                    );
                    if service.starts_with("runsgateway") {
                        let locations = file.source_code_info.unwrap().location;
                        assert!(
                            locations
                                .iter()
                                .any(|location| location.leading_comments().contains("REST: ")),
                            "{service} without comments"
                        );
                    }
                }
            }

            #[tokio::test]
            async fn describes_what_the_contract_imports() {
                let gateway = Gateway::start(Limits::default()).await;
                let question =
                    MessageRequest::FileByFilename("google/protobuf/timestamp.proto".to_owned());
                assert!(matches!(
                    ask(&gateway, question).await,
                    MessageResponse::FileDescriptorResponse(_)
                ));
            }
        }
    };
}

reflection!(v1);
reflection!(v1alpha);

#[tokio::test]
async fn health_says_serving_of_the_server_and_of_what_it_serves_and_knows_no_other() {
    let gateway = Gateway::start(Limits::default()).await;
    let mut health = HealthClient::new(gateway.channel().await);
    for service in ["", "test.Script"] {
        let check = health
            .check(HealthCheckRequest {
                service: service.to_owned(),
            })
            .await
            .unwrap();
        assert_eq!(
            check.into_inner().status(),
            ServingStatus::Serving,
            "{service}"
        );
    }
    let unknown = health
        .check(HealthCheckRequest {
            service: "no.such.Service".to_owned(),
        })
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);
}
