//! Which fields of a request an error blames, in the forms that frameworks have for it.
//!
//! Must hold: pure; a field is written as the contract's paths are, such as `tools[0].type`.

use serde_json::{Map, Value};

use super::text::without_page;
use crate::error::FieldError;

/// How deep errors embed other errors.
pub(super) const MAX_DEPTH: u8 = 6;

/// How many errors of a list are told.
pub(super) const MAX_LISTED: usize = 5;

/// Members that are about the error, where they are plain text, and no field's.
const NOT_FIELDS: [&str; 9] = [
    "code",
    "error_code",
    "errorCode",
    "errorcode",
    "status",
    "statusCode",
    "type",
    "request_id",
    "requestId",
];

/// Members that tell of the program, or of the place of an error: nothing of them is passed on.
const INTERNAL: [&str; 6] = [
    "loc",
    "stack",
    "stacktrace",
    "stackTrace",
    "trace",
    "traceback",
];

/// Names for what is wrong with no field alone.
const NO_FIELDS: [&str; 4] = ["non_field_errors", "__all__", "$", ""];

/// The errors of a map from fields to words: `{"assistant_id":["This field is required."]}`. Words
/// stand in lists, unless they may be `plain` text.
pub(super) fn of_map(map: &Value, plain: bool) -> Vec<FieldError> {
    let mut named = Vec::new();
    if let Value::Object(map) = map {
        add(&mut named, map, "", plain, 0);
    }
    named
}

fn add(
    named: &mut Vec<FieldError>,
    map: &Map<String, Value>,
    parent: &str,
    plain: bool,
    depth: u8,
) {
    for (name, value) in map {
        if named.len() > MAX_LISTED || depth > MAX_DEPTH {
            return;
        }
        if INTERNAL.contains(&&**name) {
            continue;
        }
        let field = if NO_FIELDS.contains(&&**name) {
            parent.to_owned()
        } else if parent.is_empty() {
            name.clone()
        } else {
            format!("{parent}.{name}")
        };
        match value {
            Value::String(words) if plain && !NOT_FIELDS.contains(&&**name) => {
                named.extend(error(&field, words));
            }
            Value::Array(all) => {
                for (index, one) in all.iter().enumerate() {
                    match one {
                        Value::String(words) => named.extend(error(&field, words)),
                        Value::Object(map) => {
                            add(named, map, &format!("{field}[{index}]"), plain, depth + 1);
                        }
                        _ => {}
                    }
                }
            }
            Value::Object(map) => match map.get("message").and_then(Value::as_str) {
                Some(words) => named.extend(error(&field, words)),
                None => add(named, map, &field, plain, depth + 1),
            },
            _ => {}
        }
    }
}

/// The error of a field, if there are words for people.
fn error(field: &str, words: &str) -> Option<FieldError> {
    let words = without_page(words);
    (!words.is_empty()).then(|| FieldError {
        field: field.to_owned(),
        message: words.to_owned(),
    })
}

/// The field that one error of a list names; empty if it names none.
pub(super) fn named_by(error: &Value) -> String {
    const POINTERS: [&str; 3] = ["pointer", "instancePath", "path"];
    const NAMES: [&str; 6] = [
        "field",
        "parameter",
        "property",
        "name",
        "fieldName",
        "target",
    ];
    let source = error.get("source").unwrap_or(error);
    let pointer = POINTERS.iter().find_map(|name| match source.get(name)? {
        Value::String(pointer) => Some(of_pointer(pointer)),
        path => Some(location(Some(path))),
    });
    let name = || {
        NAMES
            .iter()
            .find_map(|name| source.get(name)?.as_str().map(str::to_owned))
    };
    let pointer = pointer.filter(|path| !path.is_empty());
    pointer.or_else(name).unwrap_or_default()
}

/// A JSON pointer (RFC 6901) as a path: `#/run/tools/0` is `run.tools[0]`.
fn of_pointer(pointer: &str) -> String {
    let parts = pointer.trim_start_matches('#').split('/');
    let parts = parts.filter(|part| !part.is_empty()).map(|part| {
        part.parse::<u32>().map_or_else(
            |_| Value::String(part.replace("~1", "/").replace("~0", "~")),
            Value::from,
        )
    });
    location(Some(&Value::Array(parts.collect())))
}

/// Where in a request something is wrong: `["body","tools",0,"type"]` is `tools[0].type`.
pub(super) fn location(loc: Option<&Value>) -> String {
    let mut path = String::new();
    for (at, part) in loc
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .enumerate()
    {
        match part {
            Value::Number(index) => path.extend(["[", &index.to_string(), "]"]),
            Value::String(name)
                if at == 0 && matches!(&**name, "body" | "query" | "path" | "header") => {}
            Value::String(name) => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(name);
            }
            _ => {}
        }
    }
    path
}
