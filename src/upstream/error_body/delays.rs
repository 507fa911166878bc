//! How long to wait, where an error's JSON has a member for it.
//!
//! Must hold: pure; the first member that is understood counts.

use std::time::Duration;

use serde_json::Value;

use super::{fields::MAX_DEPTH, statuses::letters};
use crate::upstream::delay;

/// Names of such members, in lower case and without marks, and how many milliseconds a number is.
const MEMBERS: [(&str, f64); 10] = [
    ("retryafter", 1000.0),
    ("retryafterseconds", 1000.0),
    ("retryaftersecs", 1000.0),
    ("retryaftersec", 1000.0),
    ("retryafterms", 1.0),
    ("retryaftermilliseconds", 1.0),
    ("retryin", 1000.0),
    ("retryinseconds", 1000.0),
    ("retrydelay", 1000.0),
    ("retrydelayms", 1.0),
];

/// What a document asks for: `{"retry_after":12}`, `{"retryAfterMs":1500}`, Google's
/// `{"retryDelay":"17s"}`.
pub(super) fn of_document(document: &Value) -> Option<Duration> {
    search(document, 0)
}

fn search(value: &Value, depth: u8) -> Option<Duration> {
    let inner = |value| search(value, depth + 1);
    match value {
        Value::Object(object) if depth <= MAX_DEPTH => object
            .iter()
            .find_map(|(name, value)| of_member(name, value))
            .or_else(|| object.values().find_map(inner)),
        Value::Array(all) if depth <= MAX_DEPTH => all.iter().find_map(inner),
        _ => None,
    }
}

fn of_member(name: &str, value: &Value) -> Option<Duration> {
    let name = letters(name);
    let (_, unit) = MEMBERS.iter().find(|(known, _)| *known == name)?;
    match value {
        Value::Number(number) => delay::from_seconds(number.as_f64()? * unit / 1000.0),
        Value::String(text) => match text.parse::<f64>() {
            Ok(number) => delay::from_seconds(number * unit / 1000.0),
            Err(_) => delay::from_text(text),
        },
        // A duration of protobuf's.
        Value::Object(parts) => {
            let part = |name| parts.get(name).map_or(Some(0.0), Value::as_f64);
            parts.get("seconds").or_else(|| parts.get("nanos"))?;
            delay::from_seconds(part("seconds")? + part("nanos")? * 1e-9)
        }
        _ => None,
    }
}
