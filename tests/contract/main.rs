//! The contract (`proto/`) names all of the REST API, and keeps its own rules.
//!
//! The published `OpenAPI` document is read from the path in `RUNS_OPENAPI`. It is not part of the
//! project: where the variable is not set, the test that needs the document says so and checks
//! nothing.

mod schema;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
};

use prost_reflect::{Cardinality, DescriptorPool, Kind, MessageDescriptor, MethodDescriptor};
use runs_gateway::v1::DESCRIPTOR;
use schema::Comparison;
use serde_json::{Value, json};

/// What an RPC of the contract says of its REST call.
struct Route {
    method: String,
    path: String,
    body: Option<String>,
    stream: bool,
}

fn route(rpc: &MethodDescriptor) -> Route {
    let extension = rpc
        .parent_pool()
        .get_extension_by_name("runsgateway.v1.rest");
    let options = rpc.options();
    let rest = options.get_extension(&extension.expect("the option is served"));
    let rest = rest.as_message().expect("a message");
    let text = |name: &str| {
        let value = rest.get_field_by_name(name).expect("a field");
        value.as_str().expect("text").to_owned()
    };
    let stream = rest.get_field_by_name("stream").expect("a field");
    Route {
        method: text("method"),
        path: text("path"),
        body: Some(text("body")).filter(|body| !body.is_empty()),
        stream: stream.as_bool().expect("a flag"),
    }
}

/// The RPCs that are one REST call each, under the name of that call.
fn calls(pool: &DescriptorPool) -> Vec<(String, MethodDescriptor, Route)> {
    let calls = rpcs(pool).into_iter().map(|(name, rpc)| {
        let route = route(&rpc);
        (name, rpc, route)
    });
    calls
        .filter(|(name, rpc, _)| !rpc.is_server_streaming() && name != "RunService.WaitRun")
        .collect()
}

/// What the events of a stream carry, by the beginning of the event's name; the first that fits
/// counts.
const PAYLOADS: [(&str, &str); 6] = [
    ("thread.run.step.delta", "RunStepDelta"),
    ("thread.run.step.", "RunStep"),
    ("thread.run.", "Run"),
    ("thread.message.delta", "MessageDelta"),
    ("thread.message.", "ThreadMessage"),
    ("thread.created", "ThreadResource"),
];

/// Messages that are no JSON object but a bare value or a list.
const BARE_ONLY: [&str; 1] = ["MessageContent"];

/// What services send without documenting it.
const UNDOCUMENTED: [(&str, &str); 9] = [
    ("RunStep", "expires_at"),
    ("Run", "tool_resources"),
    ("Run", "reasoning_effort"),
    ("Run", "file_ids"),
    ("Usage", "prompt_token_details"),
    ("Usage", "prompt_tokens_details"),
    ("Usage", "completion_tokens_details"),
    ("RankingOptions", "hybrid_search"),
    ("FileSearchResult", "attributes_json"),
];

/// What Azure's agents have besides (`specification/ai/Azure.AI.Agents` of azure-rest-api-specs,
/// api-version v1).
const AZURE: [(&str, &[&str]); 8] = [
    ("RequiredAction", &["submit_tool_approval"]),
    ("SubmitToolApprovalAction", &["tool_calls"]),
    ("RequiredToolCall", &["name", "arguments", "server_label"]),
    ("ToolOutputs", &["tool_approvals"]),
    ("ToolApproval", &["tool_call_id", "approve", "headers"]),
    (
        "ToolCall",
        &["name", "arguments", "output", "server_label", "openapi"],
    ),
    ("Annotation", &["url_citation"]),
    ("UrlCitation", &["url", "title"]),
];

/// Members that the contract leaves out on purpose, each with the reason.
const LEFT_OUT: [(&str, &str); 3] = [
    (
        "CreateRunRequest.stream",
        "the gateway sets it: StreamCreateRun is an RPC of its own",
    ),
    (
        "CreateThreadAndRunRequest.stream",
        "the gateway sets it: StreamCreateThreadAndRun is an RPC of its own",
    ),
    (
        "SubmitToolOutputsRunRequest.stream",
        "the gateway sets it: StreamSubmitToolOutputs is an RPC of its own",
    ),
];

/// Schemas that no message mirrors, each with the reason.
const NO_MESSAGES: [(&str, &str); 5] = [
    (
        "AssistantStreamEvent",
        "its alternatives are walked one by one",
    ),
    ("Error", "an error is the call's status"),
    ("ErrorResponse", "an error is the call's status"),
    ("FunctionParameters", "JSON text: a JSON Schema"),
    ("ResponseFormatJsonSchemaSchema", "JSON text: a JSON Schema"),
];

fn pool() -> DescriptorPool {
    DescriptorPool::decode(DESCRIPTOR).expect("the descriptor set is whole")
}

fn message(pool: &DescriptorPool, name: &str) -> MessageDescriptor {
    pool.get_message_by_name(&format!("runsgateway.v1.{name}"))
        .unwrap_or_else(|| panic!("the contract has no message {name}"))
}

fn rpcs(pool: &DescriptorPool) -> Vec<(String, MethodDescriptor)> {
    let services: Vec<_> = pool.services().collect();
    services
        .iter()
        .flat_map(|service| {
            service
                .methods()
                .map(|rpc| (format!("{}.{}", service.name(), rpc.name()), rpc))
        })
        .collect()
}

/// The messages that mirror JSON: bodies, answers, what events carry, and all that these are made
/// of.
fn mirrors(pool: &DescriptorPool) -> BTreeSet<String> {
    let mut open: Vec<MessageDescriptor> = PAYLOADS
        .iter()
        .map(|(_, name)| message(pool, name))
        .collect();
    for (_, rpc, route) in calls(pool) {
        open.push(rpc.output());
        open.extend(route.body.map(|body| body_of(&rpc, &body)));
    }
    let mut seen = BTreeSet::new();
    while let Some(message) = open.pop() {
        if message.package_name() != "runsgateway.v1"
            || message.is_map_entry()
            || !seen.insert(message.name().to_owned())
        {
            continue;
        }
        open.extend(
            message
                .fields()
                .filter_map(|field| field.kind().as_message().cloned()),
        );
    }
    seen
}

fn body_of(rpc: &MethodDescriptor, field: &str) -> MessageDescriptor {
    let field = rpc
        .input()
        .get_field_by_name(field)
        .unwrap_or_else(|| panic!("{} has no field {field}", rpc.input().name()));
    field
        .kind()
        .as_message()
        .unwrap_or_else(|| panic!("{} is no message", field.full_name()))
        .clone()
}

#[test]
fn the_contract_names_every_property_and_every_closed_set_of_the_rest_api() {
    let Some(path) = env::var_os("RUNS_OPENAPI") else {
        println!("SKIPPED: RUNS_OPENAPI does not name an OpenAPI document");
        return;
    };
    let document: Value = serde_json::from_slice(&fs::read(path).expect("the document is there"))
        .expect("the document is JSON");
    let pool = pool();
    let mut comparison = Comparison::new(&document);
    let mut called = BTreeSet::new();
    for (name, rpc, route) in calls(&pool) {
        let Route {
            method, path, body, ..
        } = route;
        let operation = &document["paths"][&path][method.to_lowercase()];
        assert!(operation.is_object(), "the REST API has no {method} {path}");
        called.insert(format!("{} {path}", method.to_lowercase()));
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            comparison.parameter(&name, parameter, &rpc.input());
        }
        let sent = &operation["requestBody"]["content"]["application/json"]["schema"];
        assert_eq!(
            sent.is_object(),
            body.is_some(),
            "{name} has a body on one side only"
        );
        if let Some(body) = body {
            comparison.object("", sent, &body_of(&rpc, &body));
        }
        let answer = &operation["responses"]["200"]["content"]["application/json"]["schema"];
        assert!(answer.is_object(), "{name} has no answer");
        comparison.object("", answer, &rpc.output());
    }
    let mut events = BTreeSet::new();
    for event in comparison.alternatives(&document["components"]["schemas"]["AssistantStreamEvent"])
    {
        let name = event["properties"]["event"]["enum"][0]
            .as_str()
            .expect("an event has a name");
        events.insert(name);
        // These carry no resource: the stream's end and its status.
        if !["done", "error"].contains(&name) {
            let payload = PAYLOADS
                .iter()
                .find(|(beginning, _)| name.starts_with(beginning));
            let (_, payload) =
                payload.unwrap_or_else(|| panic!("nothing is known of what {name} carries"));
            comparison.object("", &event["properties"]["data"], &message(&pool, payload));
        }
    }
    assert_eq!(events.len(), 25, "{events:?}");

    let paths = document["paths"].as_object().expect("paths");
    let operations: BTreeSet<_> = paths
        .iter()
        .flat_map(|(path, operations)| {
            let methods = operations.as_object().expect("operations").keys();
            methods.map(move |method| format!("{method} {path}"))
        })
        .collect();
    assert_eq!(called, operations, "every operation is one call");
    assert_eq!(called.len(), 23);

    // Nothing of the document was passed over.
    let schemas = document["components"]["schemas"]
        .as_object()
        .expect("schemas");
    let seen = comparison.seen.borrow();
    let unseen: BTreeSet<_> = schemas
        .keys()
        .map(String::as_str)
        .filter(|name| !seen.contains(*name))
        .collect();
    let known = BTreeSet::from(NO_MESSAGES.map(|(name, _)| name));
    assert_eq!(unseen, known, "schemas that no call has");
    drop(seen);
    assert!(
        comparison.compared > 500,
        "only {} properties were compared",
        comparison.compared
    );

    let lacks: BTreeSet<_> = comparison.lacks.iter().map(String::as_str).collect();
    let left_out: BTreeSet<_> = LEFT_OUT.iter().map(|(place, _)| *place).collect();
    assert_eq!(
        lacks.difference(&left_out).collect::<Vec<_>>(),
        Vec::<&&str>::new(),
        "the contract lacks these"
    );
    assert_eq!(
        left_out.difference(&lacks).collect::<Vec<_>>(),
        Vec::<&&str>::new(),
        "these need not be in the list of what is left out"
    );
}

#[test]
fn what_the_contract_lacks_is_named() {
    let document = json!({"components": {"schemas": {
        "RunObject": {"type": "object", "properties": {
            "id": {"type": "string"},
            "made_up": {"type": "string"},
            "created_at": {"type": "integer", "format": "unixtime", "nullable": true},
            "started_at": {"type": "string"},
            "status": {"type": "string", "enum": ["queued", "dreaming"]},
            "tool_choice": {"oneOf": [
                {"type": "string", "enum": ["auto", "perhaps"]},
                {"type": "object", "properties": {"type": {"type": "string", "enum": ["function", "made_up"]}}}]},
            "tools": {"type": "array", "items": {"allOf": [{"$ref": "#/components/schemas/Tool"}]}},
            "metadata": {"type": "object", "additionalProperties": {"type": "integer"}},
            "usage": {"anyOf": [{"type": "null"}, {"properties": {
                "total_tokens": {"type": "number"}, "prompt_tokens": {"type": "integer"}, "foo": {"type": "integer"}}}]},
            "last_error": {"properties": {"code": {"type": "string", "enum": ["server_error"]}, "message": {"enum": ["made up"], "type": "string"}}},
        }},
        "Tool": {"properties": {"function": {"properties": {"parameters": {"type": "object"}, "parameters_json": {"type": "string"}}}}},
    }}});
    let run = message(&pool(), "Run");
    let mut comparison = Comparison::new(&document);
    comparison.object("", &json!({"$ref": "#/components/schemas/RunObject"}), &run);
    let expected = [
        "RunObject.last_error.message = \"made up\"",
        "RunObject.made_up",
        "RunObject.metadata as additionalProperties",
        "RunObject.started_at as string",
        "RunObject.status = \"dreaming\"",
        "RunObject.tool_choice = \"perhaps\"",
        "RunObject.tool_choice.type = \"made_up\"",
        "RunObject.tools[].function.parameters_json",
        "RunObject.usage.foo",
        "RunObject.usage.total_tokens as number",
    ];
    assert_eq!(
        comparison
            .lacks
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>(),
        expected
    );

    let list = message(&pool(), "ListRunsRequest");
    let mut comparison = Comparison::new(&document);
    comparison.parameter(
        "ListRuns",
        &json!({"name": "made_up[]", "schema": {"type": "array", "items": {"type": "string"}}}),
        &list,
    );
    comparison.parameter(
        "ListRuns",
        &json!({"name": "order", "schema": {"type": "string", "enum": ["asc", "random"]}}),
        &list,
    );
    assert_eq!(
        comparison
            .lacks
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>(),
        ["ListRuns.made_up", "ListRuns.order = \"random\""]
    );
}

#[test]
fn every_message_that_mirrors_an_object_ends_in_extra_json_and_no_other_has_it() {
    let pool = pool();
    let mirrors = mirrors(&pool);
    assert!(mirrors.len() > 50, "{mirrors:?}");
    for message in pool
        .all_messages()
        .filter(|message| message.package_name() == "runsgateway.v1")
    {
        let name = message.name();
        let mirrors_object = mirrors.contains(name) && !BARE_ONLY.contains(&name);
        let extra = message.get_field_by_name("extra_json");
        assert_eq!(extra.is_some(), mirrors_object, "{name}");
        if let Some(extra) = extra {
            assert_eq!(extra.number(), 1000, "{name}");
            assert_eq!(
                (extra.kind(), extra.cardinality(), extra.supports_presence()),
                (Kind::String, Cardinality::Optional, false)
            );
            assert_eq!(
                message.fields().map(|field| field.number()).max(),
                Some(1000),
                "{name}"
            );
            let last = message
                .descriptor_proto()
                .field
                .last()
                .and_then(|field| field.name.as_deref());
            assert_eq!(last, Some("extra_json"), "{name}");
        }
    }
}

#[test]
fn a_field_is_called_like_its_member_and_json_text_says_that_it_is_json() {
    for message in pool()
        .all_messages()
        .filter(|message| message.package_name() == "runsgateway.v1")
    {
        for field in message
            .fields()
            .filter(|field| field.name() != "extra_json")
        {
            let (name, json_name) = (field.name(), field.json_name());
            if let Some(member) = name.strip_suffix("_json") {
                assert_eq!(json_name, member, "{}", field.full_name());
            } else {
                assert_eq!(
                    json_name,
                    camel_case(name),
                    "{} has a json_name, which the codec would not heed",
                    field.full_name()
                );
            }
        }
    }
}

/// What protoc makes of a field's name where no `json_name` is given.
fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |so_far, word| {
        so_far + &word[..1].to_uppercase() + &word[1..]
    })
}

#[test]
fn every_enum_begins_with_unspecified_and_is_never_optional() {
    let pool = pool();
    for of in pool
        .all_enums()
        .filter(|of| of.package_name() == "runsgateway.v1")
    {
        let prefix = schema::shouting(of.name());
        let zero = of.get_value(0).map(|value| value.name().to_owned());
        assert_eq!(zero, Some(format!("{prefix}_UNSPECIFIED")));
        for value in of.values() {
            assert!(
                value.name().starts_with(&format!("{prefix}_")),
                "{}",
                value.full_name()
            );
        }
    }
    for message in pool
        .all_messages()
        .filter(|message| message.package_name() == "runsgateway.v1")
    {
        for field in message
            .fields()
            .filter(|field| field.kind().as_enum().is_some())
        {
            assert!(
                !field.supports_presence(),
                "{} is optional",
                field.full_name()
            );
        }
    }
}

#[test]
fn what_services_send_without_documenting_it_has_fields() {
    let pool = pool();
    let azure = AZURE
        .iter()
        .flat_map(|(name, fields)| fields.iter().map(move |field| (*name, *field)));
    for (name, field) in UNDOCUMENTED.into_iter().chain(azure) {
        assert!(
            message(&pool, name).get_field_by_name(field).is_some(),
            "{name} has no {field}"
        );
    }
}

#[test]
fn the_comment_of_every_rpc_ends_with_its_route() {
    let pool = pool();
    for (name, rpc) in rpcs(&pool) {
        let file = rpc.parent_file().file_descriptor_proto().clone();
        let place = file
            .source_code_info
            .into_iter()
            .flat_map(|info| info.location)
            .find(|place| place.path == rpc.path());
        let comment = place
            .and_then(|place| place.leading_comments)
            .unwrap_or_default();
        let last = comment.trim_end().lines().last().unwrap_or_default().trim();
        let Route { method, path, .. } = route(&rpc);
        assert_eq!(last, format!("REST: {method} {path}"), "{name}");
    }
}

#[test]
fn an_rpc_of_the_gateways_own_makes_the_rest_calls_of_others() {
    let pool = pool();
    let calls = calls(&pool);
    for (name, rpc) in rpcs(&pool) {
        let own = route(&rpc);
        assert!(
            calls.iter().any(|(_, _, call)| {
                (&call.method, &call.path) == (&own.method, &own.path)
                    && (!own.stream || call.body == own.body)
            }),
            "{name}"
        );
    }
}

#[test]
fn every_rpc_says_whether_it_may_be_sent_twice_and_fits_the_http_method() {
    use prost_reflect::prost_types::method_options::IdempotencyLevel as Level;
    for (name, rpc) in rpcs(&pool()) {
        let options = rpc.method_descriptor_proto().options.clone();
        let options = options.unwrap_or_default();
        assert!(options.idempotency_level.is_some(), "{name} says nothing");
        let level = options.idempotency_level();
        match &*route(&rpc).method {
            "GET" => assert_eq!(level, Level::NoSideEffects, "{name}"),
            "DELETE" => assert_eq!(level, Level::Idempotent, "{name}"),
            _ => assert_ne!(level, Level::NoSideEffects, "{name}"),
        }
    }
}

#[test]
fn the_readme_has_every_rpc_with_its_rest_call() {
    let readme = include_str!("../../README.md");
    let (_, table) = readme
        .split_once("\n| RPC | REST call |\n|---|---|\n")
        .expect("a table of RPCs");
    let mut rows = BTreeMap::new();
    for row in table.lines().take_while(|line| line.starts_with('|')) {
        let (_, cells) = row.split_once("| `").expect("a name");
        let (names, call) = cells.split_once(" | ").expect("two cells");
        let (service, methods) = names.split_once('.').expect("the service's name first");
        for method in methods.replace('`', "").split(", ") {
            let again = rows.insert(format!("{service}.{method}"), call);
            assert!(again.is_none(), "{method} is in two rows");
        }
    }
    for (name, rpc) in rpcs(&pool()) {
        let route = route(&rpc);
        let call = rows.remove(&name);
        let call = call.unwrap_or_else(|| panic!("the README's table of RPCs lacks {name}"));
        // Which calls a conversation makes, its messages say.
        let named = call.contains(&format!("`{}", route.method))
            && call.contains(&format!("{}`", route.path));
        assert!(named || rpc.is_client_streaming(), "{name}: {call}");
    }
    assert!(rows.is_empty(), "not in the contract: {rows:?}");
}
