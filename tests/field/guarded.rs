//! What the gateway guards: every path but those of health and reflection (G12).

use std::io::Write as _;

use http::Method;
use tonic::Code;

use crate::{
    clients::send,
    support::{gateway::spawn_gateway, upstream::Upstream},
};

#[tokio::test]
async fn g12_all_but_health_and_reflection_is_guarded() {
    let upstream = Upstream::start().await;
    let mut tokens = tempfile::NamedTempFile::new().expect("a file");
    let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    writeln!(tokens, "{hash} somebody").expect("written");
    let file = tokens.path().to_str().expect("a path");
    let gateway = spawn_gateway(
        &upstream.url(),
        &["--tokens-file", file, "--upstream-api-key-file", file],
    )
    .await;
    for (path, without, with) in [
        (
            "/none.v1.None/Get",
            Code::Unauthenticated,
            Code::Unimplemented,
        ),
        (
            "/RunsGateway.v1.RunService/GetRun",
            Code::Unauthenticated,
            Code::Unimplemented,
        ),
        (
            "//runsgateway.v1.RunService/GetRun",
            Code::Unauthenticated,
            Code::Unimplemented,
        ),
        (
            "/grpc.health.v1.Health/../runsgateway.v1.RunService/GetRun",
            Code::Unauthenticated,
            Code::Unimplemented,
        ),
        (
            "/grpc.health.v2.Health/Check",
            Code::Unauthenticated,
            Code::Unimplemented,
        ),
        (
            "/grpc.health.v1.Health",
            Code::Unauthenticated,
            Code::Unimplemented,
        ),
        ("/", Code::Unauthenticated, Code::Unimplemented),
        (
            "/grpc.health.v1.Health/None",
            Code::Unimplemented,
            Code::Unimplemented,
        ),
        ("/grpc.health.v1.Health/Check", Code::Ok, Code::Ok),
    ] {
        for (headers, code) in [
            (&[][..], without),
            (&[("authorization", "Bearer secret")], with),
        ] {
            let seen = send(&gateway, Method::POST, path, headers, vec![0; 5]).await;
            assert_eq!(seen.code(), code, "{path} {headers:?}");
        }
    }
    assert_eq!(upstream.requests().len(), 0);
    gateway.drain().await;
}
