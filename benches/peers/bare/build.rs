//! Generates the service: what is called of the contract's, with its messages.

use tonic_build::manual::{Builder, Method, MethodBuilder, Service};

fn main() {
    let service = Service::builder()
        .name("RunService")
        .package("runsgateway.v1")
        .method(method("get_run", "GetRun", "GetRunRequest", "Run").build())
        .method(method("create_run", "CreateRun", "CreateRunRequest", "Run").build())
        .method(
            method(
                "stream_create_run",
                "StreamCreateRun",
                "StreamCreateRunRequest",
                "RunEvent",
            )
            .server_streaming()
            .build(),
        )
        .build();
    Builder::new().build_client(false).compile(&[service]);
}

fn method(name: &str, route: &str, input: &str, output: &str) -> MethodBuilder {
    Method::builder()
        .name(name)
        .route_name(route)
        .input_type(format!("runs_gateway::v1::{input}"))
        .output_type(format!("runs_gateway::v1::{output}"))
        .codec_path("tonic_prost::ProstCodec")
}
