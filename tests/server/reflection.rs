//! What tools like grpcurl see.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use prost_reflect::{DescriptorPool, ServiceDescriptor};
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

/// What every method of the contract says of its REST call: its option and its comment say the
/// same, and what may be sent twice fits the method.
fn check_rest_calls(pool: &DescriptorPool) {
    use prost_reflect::prost_types::method_options::IdempotencyLevel as Level;
    let rest = pool
        .get_extension_by_name("runsgateway.v1.rest")
        .expect("the option is described");
    let mut calls = BTreeMap::new();
    let services: Vec<_> = pool.services().collect();
    for rpc in services.iter().flat_map(ServiceDescriptor::methods) {
        let options = rpc.options();
        let option = options.get_extension(&rest);
        let text = |member: &str| {
            let value = option.as_message()?.get_field_by_name(member)?;
            value.as_str().map(str::to_owned)
        };
        let (method, path) = (text("method").expect("text"), text("path").expect("text"));
        let file = rpc.parent_file();
        let info = file.file_descriptor_proto().source_code_info.as_ref();
        let locations = &info.expect("comments").location;
        let location = locations.iter().find(|it| it.path == rpc.path());
        let comment = location.expect("a comment").leading_comments().trim_end();
        assert_eq!(
            comment.lines().last().map(str::trim),
            Some(&*format!("REST: {method} {path}")),
            "{}",
            rpc.full_name()
        );
        let level = rpc.method_descriptor_proto().options.clone();
        let level = level.unwrap_or_default().idempotency_level();
        let name = rpc.name();
        let expected = match &*method {
            "GET" => Level::NoSideEffects,
            "DELETE" => Level::Idempotent,
            _ if name.starts_with("Modify") || name == "CancelRun" => Level::Idempotent,
            _ => Level::IdempotencyUnknown,
        };
        assert_eq!(level, expected, "{name}");
        calls.insert(format!("{method} {path}"), name.to_owned());
    }
    assert_eq!(calls.len(), 23, "{calls:#?}");
}

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
            async fn shows_the_rest_call_of_every_method_and_whether_it_may_be_sent_twice() {
                let gateway = Gateway::start(Limits::default()).await;
                let mut pool = DescriptorPool::new();
                let mut open: Vec<_> = SERVICES
                    .iter()
                    .filter(|service| service.starts_with("runsgateway"))
                    .map(|service| MessageRequest::FileContainingSymbol((*service).to_owned()))
                    .collect();
                // As a client does that knows nothing: each file, and what it imports.
                let mut files = BTreeMap::new();
                while let Some(question) = open.pop() {
                    let MessageResponse::FileDescriptorResponse(answer) =
                        ask(&gateway, question).await
                    else {
                        panic!("not described")
                    };
                    for raw in answer.file_descriptor_proto {
                        let file = FileDescriptorProto::decode(&raw[..]).unwrap();
                        let imports = file.dependency.iter().cloned();
                        let new = files.insert(file.name().to_owned(), raw).is_none();
                        open.extend(imports.filter(|_| new).map(MessageRequest::FileByFilename));
                    }
                }
                let set: Vec<u8> = files
                    .values()
                    .flat_map(|raw| {
                        let mut entry = vec![0x0a];
                        prost::encode_length_delimiter(raw.len(), &mut entry).unwrap();
                        entry.extend_from_slice(raw);
                        entry
                    })
                    .collect();
                pool.decode_file_descriptor_set(&*set).unwrap();
                check_rest_calls(&pool);
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
