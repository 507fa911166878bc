//! The API's schema document as the judge of what the embedded API answers.

use std::{
    collections::HashMap,
    env, fs,
    sync::{Arc, Mutex, OnceLock},
};

use jsonschema::Validator;
use serde_json::{Value, json};

/// Holds the body of an answer to what the document says of this call.
pub(crate) fn check_answer(method: &str, path: &str, status: u16, body: &Value) {
    if status != 200 {
        return check("ErrorResponse", body);
    }
    let Some(document) = document() else { return };
    let path = path
        .split('?')
        .next()
        .unwrap_or_default()
        .trim_start_matches("/v1");
    let segments: Vec<&str> = path.split('/').collect();
    let matches = |template: &str| {
        let template: Vec<&str> = template.split('/').collect();
        template.len() == segments.len()
            && template
                .iter()
                .zip(&segments)
                .all(|(theirs, ours)| theirs == ours || theirs.starts_with('{'))
    };
    let paths = document["paths"]
        .as_object()
        .expect("the document has paths");
    // `/threads/runs` also looks like a thread: the path with fewer variables is meant.
    let mut found: Vec<_> = paths
        .iter()
        .filter(|(template, _)| matches(template))
        .collect();
    found.sort_by_key(|(template, _)| template.matches('{').count());
    let operation = &found
        .first()
        .unwrap_or_else(|| panic!("{path} is not in the document"))
        .1[method.to_lowercase()];
    let reference =
        operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].as_str();
    let name = reference
        .and_then(|it| it.rsplit('/').next())
        .unwrap_or_else(|| panic!("no answer to {method} {path}"));
    let mut body = body.clone();
    if body["data"] == json!([]) {
        // The document has no form for the ids of an empty page. Services send null.
        body["first_id"] = json!("");
        body["last_id"] = json!("");
    }
    check(name, &body);
}

/// Holds one event of a stream to the document.
pub(crate) fn check_event(name: &str, data: &Value) {
    check(
        "AssistantStreamEvent",
        &json!({ "event": name, "data": data }),
    );
}

/// Compiled once per schema.
static VALIDATORS: OnceLock<Mutex<HashMap<String, Arc<Validator>>>> = OnceLock::new();

fn check(schema: &str, value: &Value) {
    let Some(document) = document() else { return };
    let validator = {
        let mut validators = VALIDATORS
            .get_or_init(Mutex::default)
            .lock()
            .expect("no validator panics");
        let validator = validators.entry(schema.to_owned()).or_insert_with(|| {
            let root = json!({ "$ref": format!("#/components/schemas/{schema}"), "components": document["components"] });
            Arc::new(jsonschema::validator_for(&root).expect("the document is a schema"))
        });
        Arc::clone(validator)
    };
    let errors: Vec<String> = validator
        .iter_errors(value)
        .map(|error| format!("{} at {}", error, error.instance_path))
        .collect();
    assert!(errors.is_empty(), "not a {schema}: {errors:#?}\n{value:#}");
}

fn document() -> Option<&'static Value> {
    static DOCUMENT: OnceLock<Option<Value>> = OnceLock::new();
    let read = || {
        let Ok(path) = env::var("RUNS_OPENAPI") else {
            println!("RUNS_OPENAPI is not set: answers are not held to the schema document");
            return None;
        };
        let text = fs::read(&path).expect("RUNS_OPENAPI can be read");
        Some(with_nulls(
            serde_json::from_slice(&text).expect("RUNS_OPENAPI is JSON"),
        ))
    };
    DOCUMENT.get_or_init(read).as_ref()
}

/// The document says `nullable` in places, as version 3.0 of its format had it; in JSON Schema that
/// means nothing.
fn with_nulls(value: Value) -> Value {
    match value {
        Value::Object(mut members) => {
            let nullable = members.get("nullable") == Some(&Value::Bool(true));
            if nullable {
                members.remove("nullable");
            }
            let schema = Value::Object(
                members
                    .into_iter()
                    .map(|(name, value)| (name, with_nulls(value)))
                    .collect(),
            );
            if nullable {
                json!({ "anyOf": [schema, { "type": "null" }] })
            } else {
                schema
            }
        }
        Value::Array(values) => values.into_iter().map(with_nulls).collect(),
        other => other,
    }
}
