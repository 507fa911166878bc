//! The official examples in the published schema's document: requests reach the upstream as they
//! are written there, answers come back whole.
//!
//! Must hold: a member that the document has in an example is in a field, but for those of
//! [`EXTRA`].

use std::{collections::BTreeSet, env, fs};

use serde_json::Value;

use crate::{
    call::{Call, bare},
    roots::{ROOTS, calls, descriptor, round},
    support::{
        gateway::spawn_gateway,
        upstream::{Answer, Upstream},
    },
};

/// Members of examples that the document's own schemas do not have: the call, the path of the
/// message, the members.
const EXTRA: [(&str, &str, &str); 1] = [("ModifyMessage", "", r#"{"file_ids":[]}"#)];

/// Schemas with an example, and the message that is one.
const OBJECTS: [(&str, &str); 8] = [
    ("AssistantObject", "Assistant"),
    ("ListAssistantsResponse", "ListAssistantsResponse"),
    ("MessageDeltaObject", "MessageDelta"),
    ("MessageObject", "ThreadMessage"),
    ("RunObject", "Run"),
    ("RunStepDeltaObject", "RunStepDelta"),
    ("RunStepObject", "RunStep"),
    ("ThreadObject", "ThreadResource"),
];

fn document() -> Option<Value> {
    let Some(path) = env::var_os("RUNS_OPENAPI") else {
        println!("RUNS_OPENAPI is not set: no examples to look at");
        return None;
    };
    let text = fs::read(path).expect("a readable file");
    Some(serde_json::from_slice(&text).expect("JSON"))
}

/// One or several: services' documents have both.
fn list(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(values) => values.iter().collect(),
        Value::Null => Vec::new(),
        one => vec![one],
    }
}

/// The call that a line of curl makes with this method.
fn curled(method: &str, line: &str) -> Call {
    let url = line
        .split([' ', '"', '\'', '\n'])
        .find(|word| word.starts_with("https://"));
    let (_, target) = url.and_then(|it| it.split_once("/v1")).expect("a URL");
    let body = line
        .split_once("-d '")
        .map_or("", |(_, body)| body.rsplit_once('\'').expect("its end").0);
    Call::rest(method, target, body)
}

#[tokio::test]
async fn every_official_example_passes_unchanged_both_ways() {
    let Some(document) = document() else { return };
    let upstream = Upstream::start().await;
    let gateway = spawn_gateway(&format!("{}/v1", upstream.url()), &[]).await;
    let (mut made, mut extra) = (BTreeSet::new(), Vec::new());
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            for example in list(&operation["x-oaiMeta"]["examples"]) {
                let answered = example["response"].as_str().expect("text");
                // Event streams are another test's.
                let Ok(answer) = serde_json::from_str::<Value>(answered) else {
                    assert!(answered.starts_with("event: "), "{path}: {answered}");
                    continue;
                };
                let line = example["request"]["curl"].as_str().expect("a line of curl");
                let mut call = curled(&method.to_uppercase(), line);
                // Some examples answer about another resource than the one that they ask for.
                let object = answer["object"].as_str().expect("what it is");
                let word = object.trim_end_matches(".deleted").rsplit('.').next();
                let id = format!("{}_id", word.expect("a word"));
                if call.ids().contains(&id) {
                    call.set(&id, answer["id"].as_str().expect("an id"));
                }
                // What replaces metadata is read before: it may have a mark.
                let is_marked = ["ModifyRun", "ModifyMessage", "ModifyAssistant"];
                let is_read = is_marked.contains(&call.rpc()) && line.contains("\"metadata\"");
                for _ in 0..=usize::from(is_read) {
                    upstream.push(Answer::json(200, answered.to_owned()));
                }
                let got = call
                    .on(&gateway)
                    .await
                    .unwrap_or_else(|status| panic!("{method} {path}: {status}"));
                assert_eq!(bare(got.json), bare(answer), "{method} {path}");
                let rpc = call.rpc().to_owned();
                let more = got.extra.into_iter();
                extra.extend(more.map(|(path, text)| (rpc.clone(), path, text)));
                made.insert(rpc);

                let seen = upstream.requests().pop().expect("a request");
                if let Some((_, asked)) = line.split_once("-d '") {
                    // A thread that is made of nothing.
                    let asked = match asked.rsplit_once('\'').expect("its end").0 {
                        "" => "{}",
                        asked => asked,
                    };
                    let value = |text: &str| serde_json::from_str(text).map(bare).expect("JSON");
                    assert_eq!(value(seen.text()), value(asked), "{method} {path}");
                }
            }
        }
    }
    gateway.drain().await;
    let all: BTreeSet<_> = calls().iter().map(|rpc| rpc.name().to_owned()).collect();
    assert_eq!(made, all, "every call has an example");
    let expected: Vec<_> = EXTRA
        .iter()
        .map(|(call, path, text)| ((*call).into(), (*path).into(), (*text).into()))
        .collect();
    assert_eq!(extra, expected, "what the contract does not name");
}

#[test]
fn every_example_of_an_object_is_read_into_fields_alone() {
    let Some(document) = document() else { return };
    let schemas = document["components"]["schemas"]
        .as_object()
        .expect("schemas");
    let mut compared = Vec::new();
    for (name, schema) in schemas {
        let Some(example) = schema["x-oaiMeta"]["example"].as_str() else {
            continue;
        };
        let known = OBJECTS.iter().find(|(schema, _)| schema == name);
        let (schema, message) = known.unwrap_or_else(|| panic!("{name} is not in the table"));
        let root = ROOTS.iter().find(|root| root.name == *message);
        let root = root.expect("a document");
        assert_eq!(
            round(root, &descriptor(root), example),
            0,
            "{name} has members in extra_json"
        );
        compared.push(*schema);
    }
    assert_eq!(compared, OBJECTS.map(|(schema, _)| schema));
}
