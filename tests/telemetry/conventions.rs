//! Names of metrics, labels and attributes, held to a list that says where each is from. A name that
//! is not in the list, and one in the list that nobody sends, fails.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    all, create, get, runs, stream,
    support::{
        program::Running,
        upstream::{Answer, Upstream},
    },
    traces::{Collector, attributes},
};

/// Stable since this version.
const RPC: &str = "semantic-conventions 1.45.0, docs/rpc";
const GENERAL: &str = "semantic-conventions 1.45.0, docs/registry/attributes";
const HTTP: &str = "semantic-conventions 1.45.0, docs/http";
const GEN_AI: &str = "semantic-conventions-genai 0.1.0, docs/gen-ai";
/// Of `gen_ai.client.token.usage`, which version 0.1.0 took away: here of a metric of the gateway's
/// own.
const GEN_AI_BEFORE: &str = "semantic-conventions 1.41.0, docs/gen-ai";
const OWN: &str = "the gateway's own";

/// Metrics: the conventions' name, and as Prometheus writes it.
const METRICS: [(&str, &str, &str); 7] = [
    (
        "rpc.server.call.duration",
        "rpc_server_call_duration_seconds",
        RPC,
    ),
    (
        "http.client.request.duration",
        "http_client_request_duration_seconds",
        HTTP,
    ),
    (
        "http.client.active_requests",
        "http_client_active_requests",
        HTTP,
    ),
    (
        "gen_ai.client.inference.usage.input_tokens",
        "gen_ai_client_inference_usage_input_tokens_total",
        GEN_AI,
    ),
    (
        "gen_ai.client.inference.usage.output_tokens",
        "gen_ai_client_inference_usage_output_tokens_total",
        GEN_AI,
    ),
    (
        "gen_ai.client.inference.usage.cache_read.input_tokens",
        "gen_ai_client_inference_usage_cache_read_input_tokens_total",
        GEN_AI,
    ),
    (
        "gen_ai.client.inference.usage.reasoning.output_tokens",
        "gen_ai_client_inference_usage_reasoning_output_tokens_total",
        GEN_AI,
    ),
];

/// Attributes of metrics (as labels, with `_` for `.`) and of spans.
const ATTRIBUTES: [(&str, &str); 39] = [
    ("error.type", GENERAL),
    ("server.address", GENERAL),
    ("server.port", GENERAL),
    ("url.template", GENERAL),
    ("rpc.method", RPC),
    ("rpc.method_original", RPC),
    ("rpc.status_code", RPC),
    ("rpc.system.name", RPC),
    ("http.request.method", HTTP),
    ("http.request.resend_count", HTTP),
    ("http.response.status_code", HTTP),
    ("gen_ai.agent.id", GEN_AI),
    ("gen_ai.conversation.id", GEN_AI),
    ("gen_ai.operation.name", GEN_AI),
    ("gen_ai.provider.name", GEN_AI),
    ("gen_ai.request.model", GEN_AI),
    ("gen_ai.response.id", GEN_AI),
    ("gen_ai.token.modality", GEN_AI),
    ("gen_ai.usage.input_tokens", GEN_AI),
    ("gen_ai.usage.output_tokens", GEN_AI),
    ("gen_ai.token.type", GEN_AI_BEFORE),
    ("caller", OWN),
    ("certificate", OWN),
    ("error_code", OWN),
    ("outcome", OWN),
    ("reason", OWN),
    ("status", OWN),
    ("type", OWN),
    ("version", OWN),
    ("what", OWN),
    // Resources: the exporter's own.
    ("host.name", GENERAL),
    ("process.pid", GENERAL),
    ("service.instance.id", GENERAL),
    ("service.name", GENERAL),
    ("service.version", GENERAL),
    ("telemetry.sdk.language", GENERAL),
    ("telemetry.sdk.name", GENERAL),
    ("telemetry.sdk.version", GENERAL),
    ("files", OWN),
];

/// What need not come up here: what the exporter says is its library's to choose, and no gateway has
/// all files and failures.
const MAY_LACK: [&str; 6] = [
    "host.name",
    "process.pid",
    "service.instance.id",
    "certificate",
    "files",
    "reason",
];

/// The labels of each family in what a scraper reads.
fn families(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut families = BTreeMap::new();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            kind.split(' ')
                .next()
                .unwrap_or_default()
                .clone_into(&mut family);
            families.insert(family.clone(), BTreeSet::new());
        } else if let Some((_, labels)) = line.split_once('{') {
            let names = labels.split("=\"").filter_map(|before| {
                let name = before.rsplit([',', '"']).next()?;
                Some(name.to_owned())
            });
            let names: Vec<_> = names.collect();
            // Behind the last `="` there is no name but a value.
            let known = families.get_mut(&family).expect("a type comes first");
            let names = names[..names.len() - 1].iter().cloned();
            // The label of a histogram's buckets is Prometheus' own.
            known.extend(names.filter(|name| name != "le"));
        }
    }
    families
}

/// A run that failed after it used tokens of all kinds.
fn thoughtful() -> String {
    let usage = r#""usage":{"prompt_tokens":30,"completion_tokens":5,"total_tokens":35,
        "prompt_token_details":{"cached_tokens":10},"completion_tokens_details":{"reasoning_tokens":2}}"#;
    crate::run("completed", &format!(",{usage}"))
}

#[tokio::test]
async fn every_name_is_in_the_list_and_every_name_of_the_list_is_sent() {
    let collector = Collector::default();
    let url = collector.start_grpc().await;
    let upstream = Upstream::start().await;
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*url),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    ];
    let folder = tempfile::tempdir().expect("a folder");
    let tokens = folder.path().join("tokens");
    // `printf %s secret | sha256sum`
    let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    std::fs::write(&tokens, format!("{hash} somebody\n")).expect("a file");
    let flags = [
        ["--upstream-url", &upstream.url()],
        ["--upstream-api-key", "key"],
        ["--tokens-file", tokens.to_str().expect("text")],
        ["--max-live-streams", "1"],
        ["--retry-pause", "1ms"],
    ];
    let gateway = Running::start_in(flags.as_flattened(), &environment).await;
    let mut client = runs(&gateway);
    let known = |message| crate::with(message, &[("authorization", "Bearer secret")]);
    upstream.push(Answer::json(500, "{}"));
    upstream.push(Answer::json(200, thoughtful()));
    client.get_run(known(get())).await.expect("a run");
    upstream.push(crate::events());
    let request = crate::with(stream(), &[("authorization", "Bearer secret")]);
    all(client.stream_create_run(request).await).await;
    // An error of the upstream's, and a trouble.
    upstream.push(Answer::json(401, r#"{"error":{"message":"No."}}"#));
    let request = crate::with(create(), &[("authorization", "Bearer secret")]);
    client.create_run(request).await.expect_err("no key");
    let mut unknown = tonic::client::Grpc::new(gateway.channel.clone());
    unknown.ready().await.expect("a connection");
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/x.Y/Z");
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let request = crate::with((), &[("authorization", "Bearer secret")]);
    let answer = unknown.unary(request, path, codec).await;
    answer.expect_err("not served");
    // One stream too many.
    upstream.push(Answer::never());
    let mut held = runs(&gateway);
    let request = crate::with(stream(), &[("authorization", "Bearer secret")]);
    let holding = tokio::spawn(async move { held.stream_create_run(request).await.map(drop) });
    upstream.wait_for_requests(5).await;
    let request = crate::with(stream(), &[("authorization", "Bearer secret")]);
    client.stream_create_run(request).await.expect_err("one");
    let (_, text) = gateway.ask_admin("/metrics").await;
    holding.abort();
    gateway.stop("-TERM").await;

    let mut seen = BTreeSet::new();
    let mut metrics = BTreeSet::new();
    for (family, labels) in families(&text) {
        let own = family.starts_with("runs_gateway_") || family.starts_with("process_");
        let listed = METRICS.iter().any(|(_, name, _)| *name == family);
        assert!(own || listed, "{family} is not in the list");
        for label in labels {
            let listed = ATTRIBUTES
                .iter()
                .find(|(name, _)| name.replace('.', "_") == label);
            let (name, source) = listed.unwrap_or_else(|| panic!("{family}: {label} is unknown"));
            assert!(own || *source != OWN, "{family}: {label} is the gateway's");
            seen.insert(*name);
        }
        metrics.insert(family);
    }
    for (_, name, _) in METRICS {
        assert!(metrics.contains(name), "{name} is not sent: {text}");
    }
    for span in collector.spans() {
        seen.extend(attributes(&span.attributes).keys().map(|name| listed(name)));
    }
    seen.extend(collector.resource().keys().map(|name| listed(name)));
    let unseen = ATTRIBUTES.iter().map(|(name, _)| *name);
    let unseen: Vec<_> = unseen
        .filter(|name| !seen.contains(name) && !MAY_LACK.contains(name))
        .collect();
    assert_eq!(unseen, Vec::<&str>::new(), "nobody sends these");
}

/// The attribute of this name in the list.
fn listed(name: &str) -> &'static str {
    let found = ATTRIBUTES.iter().find(|(known, _)| *known == name);
    found
        .unwrap_or_else(|| panic!("{name} is not in the list"))
        .0
}

#[tokio::test]
async fn the_names_of_the_release_before_are_sent_in_place_of_todays_if_they_are_asked_for() {
    let upstream = Upstream::start().await;
    let gateway = Running::start(&["--upstream-url", &upstream.url(), "--legacy-metrics"]).await;
    upstream.push(crate::events());
    all(runs(&gateway).stream_create_run(stream()).await).await;
    let (_, text) = gateway.ask_admin("/metrics").await;
    for line in [
        r#"rpc_server_call_duration_seconds_count{rpc_method="StreamCreateRun",rpc_response_status_code="OK",rpc_service="runsgateway.v1.RunService"} 1"#,
        r#"rpc_server_active_calls{rpc_method="StreamCreateRun",rpc_service="runsgateway.v1.RunService"} 0"#,
        r#"runs_gateway_time_to_first_event_seconds_count{rpc_method="StreamCreateRun"} 1"#,
        r#"gen_ai_client_token_usage_sum{gen_ai_operation_name="invoke_agent",gen_ai_request_model="gpt-4o",gen_ai_token_type="input"} 30"#,
        r#"gen_ai_client_token_usage_sum{gen_ai_operation_name="invoke_agent",gen_ai_request_model="gpt-4o",gen_ai_token_type="output"} 5"#,
    ] {
        assert!(text.lines().any(|other| other == line), "{line}: {text}");
    }
    for name in [
        "rpc_system_name",
        "rpc_status_code",
        "inference_usage",
        "runs_gateway_active_calls",
    ] {
        assert!(!text.contains(name), "{name}: {text}");
    }
    gateway.stop("-TERM").await;
}
