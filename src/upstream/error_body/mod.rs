//! What an upstream says of its error: one reader for every shape that services, frameworks and
//! edges give their errors, in an answer or in an `error` event.
//!
//! | who | shape |
//! |---|---|
//! | `OpenAI`, Azure | `{"error":{"message","type","param","code"}}`; `code` may be the status |
//! | AI/ML API, Nest | `{"message","statusCode",…}`; `message` may embed another service's JSON |
//! | `FastAPI` | `{"detail":"words"}`, `{"detail":[{"loc","msg","type"}]}` |
//! | RFC 9457 | `{"title","detail","status"}`, with `errors`: a map or a list of fields |
//! | Django | `{"field":["words"]}`, `{"detail":"words"}` |
//! | Google | `{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message"}}`, also in a list |
//! | grpc-gateway | `{"code":9,"message","details":[…]}`: the code is gRPC's |
//! | AWS | `{"__type":"…#ThrottlingException","message"}`, `{"Code","Message"}` |
//! | Apigee | `{"fault":{"faultstring","detail":{"errorcode"}}}` |
//! | Zod, AI/ML API | `{"error":{"issues":[{"path","message"}]}}`, `{"message","meta":[…]}` |
//! | Elastic, Okta | `{"error":{"reason"}}`, `{"errorSummary","errorCauses":[…]}` |
//! | others | `{"error":"words"}`, `{"error","error_description"}`, `{"errors":[…]}`, `"words"` |
//! | others | `{"error_msg","error_code"}` |
//! | no JSON | plain text |
//!
//! Must hold: pure; what comes out is bounded. A page (HTML) is for people: none of its words are
//! passed on. That a *route* is missing is said only of a body that was read whole.

mod delays;
mod fields;
mod routes;
mod shapes;
mod statuses;
mod text;

#[cfg(test)]
mod tests;

use std::time::Duration;

use serde_json::Value;

pub(crate) use self::text::without_mark;
pub(super) use self::{statuses::status_of, text::is_page};
use crate::error::ErrorBody;

/// What a body says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// The error; `None` if the body has no words of a service's.
    pub(super) error: Option<ErrorBody>,
    /// The HTTP status that stands in the body.
    pub(super) status: Option<u16>,
    /// How long it asks to wait, in a member of its own.
    pub(super) retry_after: Option<Duration>,
    /// The upstream's id of the request.
    pub(super) request_id: Option<String>,
    /// What answered is a server that has no such route, not the service: of a 404.
    pub(super) missing_route: bool,
    /// What answered is a server's TLS port, to a request in the clear.
    pub(super) wants_tls: bool,
}

/// Reads a body that is there as a whole.
pub(super) fn read(text: &[u8], content_type: &str) -> Said {
    let text = without_mark(text).trim_ascii();
    let event = text::data_of_event(text);
    let text = event.as_deref().unwrap_or(text);
    let said = match text::document(text) {
        Some(document) => Said {
            retry_after: delays::of_document(&document),
            ..shapes::from_document(&document)
        },
        None => Said {
            error: text::plain(text, content_type),
            ..Said::default()
        },
    };
    let missing_route = match &said.error {
        Some(error) => routes::is_missing(error),
        // Nobody who knows of runs says nothing about the one that is not there.
        None => !text::is_cut_json(text),
    };
    Said {
        missing_route,
        wants_tls: text::wants_tls(text, content_type),
        ..said
    }
}

/// Whether JSON that is no resource is an error: some upstreams answer so with status 200, and
/// proxies report their own failures so, in an event without a name.
pub(crate) fn is_error(text: &[u8]) -> bool {
    serde_json::from_slice(without_mark(text)).is_ok_and(|document| says_error(&document))
}

fn says_error(document: &Value) -> bool {
    // What no resource has.
    const NAMES: [&str; 8] = [
        "detail",
        "errors",
        "fault",
        "error_msg",
        "error_message",
        "errorMessage",
        "error_code",
        "errorCode",
    ];
    let has = |name: &str| {
        let value = document.get(name);
        value.is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false)))
    };
    let is_marked = ["object", "type"]
        .iter()
        .any(|name| document.get(*name).and_then(Value::as_str) == Some("error"));
    let has_code = || {
        has("statusCode")
            || has("__type")
            || statuses::of_object(document).is_some()
            || is_word(&word(document, "code"))
    };
    let has_words = || NAMES.into_iter().any(has) || has("message") && has_code();
    match document {
        Value::Array(all) => all.first().is_some_and(says_error),
        Value::Object(_) => is_marked || has("error") || !has("id") && has_words(),
        _ => false,
    }
}

/// A name, and not nothing or a number in digits.
fn is_word(word: &str) -> bool {
    word.contains(|letter: char| letter.is_ascii_alphabetic())
}

/// A word or number of an object, as text.
fn word(object: &Value, name: &str) -> String {
    match object.get(name) {
        Some(Value::String(word)) => word.clone(),
        Some(Value::Number(number)) => {
            let number = number.to_string();
            number.strip_suffix(".0").unwrap_or(&number).to_owned()
        }
        _ => String::new(),
    }
}
