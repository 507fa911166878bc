//! What the gateway asks of the upstream is what the published schema allows, on the route that the
//! contract's comments promise.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
};

use prost_reflect::{Kind, MessageDescriptor};
use serde_json::{Value, json};

use crate::{
    call::{Call, is_on, parts, walk},
    roots::{body, calls},
    support::{
        gateway::{Gateway, spawn_gateway},
        upstream::{Recorded, Upstream},
    },
};

/// Requests, minimal and full: method, target, body. Together they set every field of every request
/// message.
///
/// Where a `type` is missing from a tagged message the gateway has to infer it: the schema requires
/// it everywhere.
const REQUESTS: &[(&str, &str, &str)] = &[
    ("POST", "/threads/t/runs", r#"{"assistant_id":"a"}"#),
    (
        "POST",
        "/threads/t/runs?include[]=step_details.tool_calls[*].file_search.results[*].content",
        r#"{
            "assistant_id":"a", "model":"m", "reasoning_effort":"low", "instructions":"", "additional_instructions":"be kind",
            "additional_messages":[
                {"role":"user","content":"hello","metadata":{"k":"v"}},
                {"role":"assistant","content":[
                    {"type":"text","text":"look"},
                    {"type":"image_file","image_file":{"file_id":"f","detail":"high"}},
                    {"type":"image_url","image_url":{"url":"https://example.com/i.png","detail":"low"}}],
                 "attachments":[{"file_id":"f","tools":[{"type":"code_interpreter"},{"type":"file_search"}]}]}],
            "tools":[
                {"type":"code_interpreter"},
                {"type":"file_search","file_search":{"max_num_results":50,"ranking_options":{
                    "ranker":"auto","score_threshold":0.5,"hybrid_search":{"embedding_weight":1,"text_weight":0.5}}}},
                {"type":"function","function":{"name":"f","description":"does","strict":false,
                    "parameters":{"type":"object","properties":{"z":{"type":"string"},"a":{"maximum":9007199254740993}}}}}],
            "metadata":{"a":"b"}, "temperature":0, "top_p":1, "max_prompt_tokens":256, "max_completion_tokens":9007199254740993,
            "truncation_strategy":{"type":"last_messages","last_messages":1}, "tool_choice":"required", "parallel_tool_calls":false,
            "response_format":{"type":"json_schema","json_schema":{"name":"n","description":"d","strict":true,"schema":{"type":"object"}}}
        }"#,
    ),
    (
        "POST",
        "/threads/t/runs",
        r#"{
            "assistant_id":"a",
            "additional_messages":[{"role":"user","content":[{"text":"t"},{"image_file":{"file_id":"f"}},{"image_url":{"url":"u"}}]}],
            "tools":[{"function":{"name":"f"}},{"file_search":{}}],
            "truncation_strategy":{"last_messages":3}, "tool_choice":{"function":{"name":"f"}},
            "response_format":{"json_schema":{"name":"n"}}
        }"#,
    ),
    (
        "POST",
        "/threads/t/runs",
        r#"{"assistant_id":"a","response_format":"auto","truncation_strategy":{"type":"auto"}}"#,
    ),
    (
        "POST",
        "/threads/t/runs",
        r#"{"assistant_id":"a","response_format":{"type":"text"},"tool_choice":{"type":"file_search"}}"#,
    ),
    ("POST", "/threads/runs", r#"{"assistant_id":"a"}"#),
    (
        "POST",
        "/threads/runs",
        r#"{
            "assistant_id":"a", "model":"m", "instructions":"i", "tools":[{"type":"code_interpreter"}],
            "thread":{
                "messages":[{"role":"user","content":"hello"}], "metadata":{"k":"v"},
                "tool_resources":{"code_interpreter":{"file_ids":["f"]},"file_search":{"vector_stores":[
                    {"file_ids":["f"],"metadata":{"k":"v"},"chunking_strategy":
                        {"type":"static","static":{"max_chunk_size_tokens":100,"chunk_overlap_tokens":0}}}]}}},
            "tool_resources":{"code_interpreter":{"file_ids":["f"]},"file_search":{"vector_store_ids":["v"]}},
            "metadata":{"a":"b"}, "temperature":2, "top_p":0, "max_prompt_tokens":256, "max_completion_tokens":256,
            "truncation_strategy":{"type":"auto"}, "tool_choice":"none", "parallel_tool_calls":true,
            "response_format":{"type":"json_object"}
        }"#,
    ),
    (
        "POST",
        "/threads/runs",
        r#"{"assistant_id":"a","thread":{"tool_resources":{"file_search":{"vector_stores":[
            {"chunking_strategy":{"static":{"max_chunk_size_tokens":4096,"chunk_overlap_tokens":1}}}]}}}}"#,
    ),
    ("GET", "/threads/t/runs", ""),
    (
        "GET",
        "/threads/t/runs?limit=1&order=asc&after=run_1&before=run_9",
        "",
    ),
    ("GET", "/threads/t/runs?limit=100&order=desc", ""),
    ("GET", "/threads/t/runs/r", ""),
    ("POST", "/threads/t/runs/r", "{}"),
    ("POST", "/threads/t/runs/r", r#"{"metadata":{"k":""}}"#),
    (
        "POST",
        "/threads/t/runs/r/submit_tool_outputs",
        r#"{"tool_outputs":[{"tool_call_id":"c","output":"o"},{"tool_call_id":"d"}]}"#,
    ),
    ("POST", "/threads/t/runs/r/cancel", ""),
    ("GET", "/threads/t/runs/r/steps", ""),
    (
        "GET",
        "/threads/t/runs/r/steps?limit=20&order=asc&after=s&before=s&include[]=step_details.tool_calls[*].file_search.results[*].content",
        "",
    ),
    ("GET", "/threads/t/runs/r/steps/s", ""),
    (
        "GET",
        "/threads/t/runs/r/steps/s?include[]=step_details.tool_calls[*].file_search.results[*].content",
        "",
    ),
    ("POST", "/assistants", r#"{"model":"m"}"#),
    (
        "POST",
        "/assistants",
        r#"{
            "model":"m", "name":"n", "description":"", "instructions":"i", "reasoning_effort":"high",
            "tools":[{"type":"code_interpreter"},{"file_search":{}},{"function":{"name":"f"}}],
            "tool_resources":{"code_interpreter":{"file_ids":["f"]},"file_search":{"vector_store_ids":["v"]}},
            "metadata":{"a":"b"}, "temperature":0, "top_p":1,
            "response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"type":"object"}}}
        }"#,
    ),
    (
        "POST",
        "/assistants",
        r#"{"model":"m","response_format":"auto","tool_resources":{"file_search":{"vector_stores":[
            {"file_ids":["f"],"metadata":{"k":"v"},"chunking_strategy":{"type":"auto"}}]}}}"#,
    ),
    ("GET", "/assistants", ""),
    (
        "GET",
        "/assistants?limit=1&order=asc&after=asst_1&before=asst_9",
        "",
    ),
    ("GET", "/assistants?limit=100&order=desc", ""),
    ("GET", "/assistants/a", ""),
    ("POST", "/assistants/a", "{}"),
    (
        "POST",
        "/assistants/a",
        r#"{
            "model":"m", "name":"", "description":"d", "instructions":"i", "reasoning_effort":"low",
            "tools":[{"type":"code_interpreter"}],
            "tool_resources":{"code_interpreter":{"file_ids":["f"]},"file_search":{"vector_store_ids":["v"]}},
            "metadata":{"a":""}, "temperature":2, "top_p":0, "response_format":{"type":"json_object"}
        }"#,
    ),
    ("DELETE", "/assistants/a", ""),
    ("POST", "/threads", ""),
    ("POST", "/threads", "{}"),
    (
        "POST",
        "/threads",
        r#"{
            "messages":[
                {"role":"user","content":"hello","metadata":{"k":"v"}},
                {"role":"assistant","content":[{"text":"look"},{"image_file":{"file_id":"f"}}],
                 "attachments":[{"file_id":"f","tools":[{"type":"file_search"}]}]}],
            "tool_resources":{"code_interpreter":{"file_ids":["f"]},"file_search":{"vector_store_ids":["v"]}},
            "metadata":{"a":"b"}
        }"#,
    ),
    ("GET", "/threads/t", ""),
    ("POST", "/threads/t", "{}"),
    (
        "POST",
        "/threads/t",
        r#"{
            "tool_resources":{"code_interpreter":{"file_ids":["f"]},"file_search":{"vector_store_ids":["v"]}},
            "metadata":{"a":"b"}
        }"#,
    ),
    ("DELETE", "/threads/t", ""),
    (
        "POST",
        "/threads/t/messages",
        r#"{"role":"user","content":"hello"}"#,
    ),
    (
        "POST",
        "/threads/t/messages",
        r#"{
            "role":"assistant",
            "content":[
                {"type":"text","text":"look"},
                {"image_file":{"file_id":"f","detail":"auto"}},
                {"type":"image_url","image_url":{"url":"https://example.com/i.png","detail":"low"}}],
            "attachments":[{"file_id":"f","tools":[{"type":"code_interpreter"}]}],
            "metadata":{"k":"v"}
        }"#,
    ),
    ("GET", "/threads/t/messages", ""),
    (
        "GET",
        "/threads/t/messages?limit=20&order=desc&after=m&before=m&run_id=run_1",
        "",
    ),
    ("GET", "/threads/t/messages/m", ""),
    ("POST", "/threads/t/messages/m", "{}"),
    ("POST", "/threads/t/messages/m", r#"{"metadata":{"k":"v"}}"#),
    ("DELETE", "/threads/t/messages/m", ""),
];

/// Fields of requests that are the gateway's own, and no part of the REST API.
const OWN_FIELDS: [&str; 2] = ["request_id", "on_active_run"];

/// Fields that the published schema does not have (`tests/converse/approvals.rs` has them).
const UNPUBLISHED: [&str; 1] = ["tool_approvals"];

/// A gateway and an upstream that agrees to everything.
struct Pair {
    upstream: Upstream,
    gateway: Gateway,
}

impl Pair {
    async fn start() -> Self {
        let upstream = Upstream::answering(Recorded::agreed).await;
        let gateway = spawn_gateway(&upstream.url(), &[]).await;
        Self { upstream, gateway }
    }

    /// Makes the call, and gives the one request that arrives. A modification of metadata reads
    /// before what it modifies: the mark has to stay.
    async fn arriving(&self, call: &Call) -> Recorded {
        let before = self.upstream.requests().len();
        call.on(&self.gateway)
            .await
            .unwrap_or_else(|status| panic!("{call:?}: {status}"));
        let requests = self.upstream.requests();
        let request = match &requests[before..] {
            [request] => request,
            [read, request] if read.method == "GET" && read.target == request.target => request,
            _ => panic!("{call:?}: not exactly one request"),
        };
        request.clone()
    }
}

#[test]
fn the_table_sets_every_field_of_every_request() {
    fn reach(message: &MessageDescriptor, fields: &mut BTreeSet<String>) {
        for field in message
            .fields()
            .filter(|field| field.name() != "extra_json" && !OWN_FIELDS.contains(&field.name()))
            .filter(|field| !UNPUBLISHED.contains(&field.name()))
        {
            if fields.insert(field.full_name().to_owned())
                && let Kind::Message(message) = field.kind()
                && !field.is_map()
            {
                reach(&message, fields);
            }
        }
    }
    let (mut all, mut set) = (BTreeSet::new(), BTreeSet::new());
    for rpc in calls() {
        reach(&rpc.input(), &mut all);
    }
    for (method, target, body) in REQUESTS {
        let call = Call::rest(method, target, body);
        walk(call.reflect(), "", &mut |path, field, value| {
            assert_ne!(
                field.name(),
                "extra_json",
                "{method} {target}: {path} does not hold {value}"
            );
            set.insert(field.full_name().to_owned());
        });
    }
    let missing: Vec<_> = all.difference(&set).collect();
    assert!(missing.is_empty(), "not set by any request: {missing:#?}");
}

#[tokio::test]
async fn every_request_is_valid_under_the_published_schema() {
    let Some(path) = env::var_os("RUNS_OPENAPI") else {
        return println!("RUNS_OPENAPI is not set: no schema to validate against");
    };
    let document: Value =
        serde_json::from_slice(&fs::read(path).expect("a readable file")).expect("JSON");
    let valid = |schema: &Value, value: &Value| -> Result<(), String> {
        // The references in it are relative to the document. `nullable`, which this version of JSON
        // Schema does not know, does not matter: the gateway sends no null.
        let whole = json!({"components": document["components"], "allOf": [schema]});
        let schema = jsonschema::draft202012::new(&whole).expect("a schema");
        let errors: Vec<_> = schema
            .iter_errors(value)
            .map(|error| format!("{}: {error}", error.instance_path))
            .collect();
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors.join("; "))
        }
    };
    let run = json!({"$ref": "#/components/schemas/CreateRunRequest"});
    valid(&run, &json!({"assistant_id": "a"})).expect("an assistant is enough");
    valid(
        &run,
        &json!({"assistant_id": "a", "tools": [{"type": "function"}]}),
    )
    .expect_err("a function without its name");

    let mut validated = BTreeSet::new();
    let pair = Pair::start().await;
    for (method, target, body) in REQUESTS {
        let call = Call::rest(method, target, body);
        validated.insert(call.rpc().to_owned());
        let seen = pair.arriving(&call).await;
        let (path, query) = parts(&seen.target);
        let operations = document["paths"].as_object().expect("paths");
        // `/threads/runs` is no thread.
        let (template, operations) = operations
            .iter()
            .filter(|(template, _)| is_on(template, &path))
            .min_by_key(|(template, _)| template.matches('{').count())
            .expect(target);
        let operation = &operations[seen.method.to_ascii_lowercase()];
        assert!(
            operation.is_object(),
            "{} {template} is not an operation",
            seen.method
        );

        // A list is in the query once per value.
        let mut sent = BTreeMap::<&str, Vec<&str>>::new();
        for (name, value) in &query {
            sent.entry(name).or_default().push(value);
        }
        for (name, values) in sent {
            let parameter = operation["parameters"]
                .as_array()
                .expect("parameters")
                .iter()
                .find(|it| it["name"] == *name);
            let schema =
                &parameter.unwrap_or_else(|| panic!("{target}: no parameter {name}"))["schema"];
            let value = match (schema["type"].as_str(), &values[..]) {
                (Some("array"), values) => json!(values),
                (Some("integer"), [value]) => json!(value.parse::<i64>().expect("a number")),
                (_, [value]) => json!(value),
                _ => panic!("{target}: {name} more than once"),
            };
            valid(schema, &value).unwrap_or_else(|error| panic!("{target}: {name}: {error}"));
        }

        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        if schema.is_null() {
            assert_eq!(
                (seen.text(), seen.header("content-type")),
                ("", None),
                "{target}"
            );
            continue;
        }
        assert_eq!(
            seen.header("content-type"),
            Some("application/json"),
            "{target}"
        );
        let body: Value = serde_json::from_slice(&seen.body).expect("JSON");
        valid(schema, &body).unwrap_or_else(|error| panic!("{method} {target}: {error}\n{body:#}"));
    }
    pair.gateway.drain().await;
    let all: BTreeSet<_> = calls().iter().map(|rpc| rpc.name().to_owned()).collect();
    assert_eq!(validated, all, "each call is in the table");
}

#[tokio::test]
async fn every_call_takes_the_route_that_its_comment_says() {
    let mut compared = BTreeSet::new();
    let pair = Pair::start().await;
    for call in Call::all() {
        let rpc = call.method();
        let file = rpc.parent_file();
        let info = file.file_descriptor_proto().source_code_info.as_ref();
        let locations = &info.expect("comments").location;
        let comment = locations
            .iter()
            .find(|it| it.path == rpc.path())
            .expect("a comment")
            .leading_comments();
        let last = comment.trim().lines().last().unwrap_or_default().trim();
        let (method, route) = last
            .strip_prefix("REST: ")
            .and_then(|it| it.split_once(' '))
            .expect("REST: METHOD /route");
        let seen = pair.arriving(&call).await;
        let (path, query) = parts(&seen.target);
        assert!(
            seen.method == method && is_on(route, &path),
            "{last} sent {} {}",
            seen.method,
            seen.target
        );
        assert!(query.is_empty(), "{last} sent {}", seen.target);
        assert_eq!(
            seen.body.is_empty(),
            body(rpc).is_none(),
            "{last} sent {:?}",
            seen.text()
        );
        compared.insert(rpc.full_name().to_owned());
    }
    pair.gateway.drain().await;
    let all: BTreeSet<_> = calls()
        .iter()
        .map(|rpc| rpc.full_name().to_owned())
        .collect();
    assert_eq!(compared, all, "one row of each call");
}
