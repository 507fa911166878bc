//! From JSON of any shape to one error.
//!
//! Must hold: pure; no deeper than [`MAX_DEPTH`], and no more of a list than [`MAX_LISTED`].

use serde_json::Value;

use super::{
    Said,
    fields::{self, MAX_DEPTH, MAX_LISTED},
    is_word, statuses,
    text::without_page,
    word,
};
use crate::error::{ErrorBody, FieldError};

/// The error of a whole body. One that has no words where errors have them may have them by field,
/// or have but a name.
pub(super) fn from_document(document: &Value) -> Said {
    let said = from_json(document, 0);
    if said.error.is_some() {
        return said;
    }
    let nested = document.get("error");
    let named = nested
        .map(|error| fields::of_map(error, false))
        .filter(|named| !named.is_empty())
        .unwrap_or_else(|| fields::of_map(document, false));
    let name = || {
        let mut error = ErrorBody::default();
        add_names(&mut error, nested.unwrap_or(document));
        is_word(&error.code).then_some(error)
    };
    Said {
        error: by_field(named).or_else(name),
        ..said
    }
}

fn from_json(value: &Value, depth: u8) -> Said {
    if depth > MAX_DEPTH {
        return Said::default();
    }
    match value {
        Value::String(words) => from_words(words, depth),
        Value::Array(all) => from_list(all, depth),
        Value::Object(_) => from_object(value, depth),
        Value::Null | Value::Bool(_) | Value::Number(_) => Said::default(),
    }
}

/// Words, and the error of another service that they may embed: `400 {"error":{…}}`.
fn from_words(words: &str, depth: u8) -> Said {
    let embedded = words.find('{').and_then(|at| {
        let mut values = serde_json::Deserializer::from_str(&words[at..]).into_iter::<Value>();
        let said = from_json(&values.next()?.ok()?, depth + 1);
        said.error.is_some().then_some(said)
    });
    let words = without_page(words);
    embedded.unwrap_or_else(|| Said {
        error: (!words.trim().is_empty()).then(|| ErrorBody {
            message: words.to_owned(),
            ..ErrorBody::default()
        }),
        ..Said::default()
    })
}

/// Several errors: the first one's code and type, and the words of all, each with its field.
fn from_list(all: &[Value], depth: u8) -> Said {
    let mut said: Option<Said> = None;
    let mut named = Vec::new();
    for one in all {
        let mut read = from_json(one, depth + 1);
        let Some(error) = &mut read.error else {
            continue;
        };
        if error.fields.is_empty() {
            let is_named = !error.param.is_empty();
            named.push(FieldError {
                field: if is_named {
                    error.param.clone()
                } else {
                    fields::named_by(one)
                },
                message: error.message.clone(),
            });
        } else {
            named.append(&mut error.fields);
        }
        said.get_or_insert(read);
        if named.len() > MAX_LISTED {
            break;
        }
    }
    let mut said = said.unwrap_or_default();
    if let Some(first) = said.error.take() {
        said.error = by_field(named).map(|error| ErrorBody {
            code: first.code,
            r#type: first.r#type,
            ..error
        });
    }
    said
}

/// One error of several, each of a field or of none.
fn by_field(mut named: Vec<FieldError>) -> Option<ErrorBody> {
    let is_cut = named.len() > MAX_LISTED;
    named.truncate(MAX_LISTED);
    let tell = |FieldError { field, message }: &FieldError| {
        if field.is_empty() || message.contains(field) {
            message.clone()
        } else {
            format!("{field}: {message}")
        }
    };
    let mut words: Vec<_> = named.iter().map(tell).collect();
    words.extend(is_cut.then(|| "and more".to_owned()));
    named.retain(|one| !one.field.is_empty());
    (!words.is_empty()).then(|| ErrorBody {
        message: words.join("; "),
        param: named
            .first()
            .map(|first| first.field.clone())
            .unwrap_or_default(),
        fields: named,
        ..ErrorBody::default()
    })
}

/// Members that are lists of errors, each of a field or of none, beside words for all of them.
const LISTS: [&str; 9] = [
    "errors",
    "violations",
    "invalid-params",
    "fieldViolations",
    "field_violations",
    "issues",
    "meta",
    "root_cause",
    "errorCauses",
];

/// Where an error is an object in an object.
const NESTED: [&str; 3] = ["error", "fault", "Error"];

/// Where each shape has its words, the most particular first. `error` beside other words is the
/// status in words, and `title` the kind of the problem.
const WORDS: [&str; 18] = [
    "faultstring",
    "detail",
    "details",
    "message",
    "msg",
    "error_description",
    "error_message",
    "error_msg",
    "errorMessage",
    "Message",
    "defaultMessage",
    "errorSummary",
    "error",
    "title",
    "description",
    "reason",
    "Description",
    "Reason",
];

/// Words for all errors of a list.
const SUMMARIES: [&str; 6] = [
    "detail",
    "message",
    "msg",
    "title",
    "errorSummary",
    "reason",
];

fn from_object(object: &Value, depth: u8) -> Said {
    // Google's details other than its violations are for programs.
    let is_detail = object.get("@type").is_some();
    if is_detail
        && !["fieldViolations", "violations"]
            .iter()
            .any(|it| object.get(*it).is_some())
    {
        return Said::default();
    }
    let outer = Said {
        error: None,
        status: statuses::of_object(object),
        request_id: ["requestId", "request_id", "requestID"]
            .iter()
            .find_map(|name| Some(object.get(name)?.as_str()?.to_owned())),
        ..Said::default()
    };
    let has_words = |said: &Said| said.error.is_some();
    let nested = || {
        let errors = NESTED.iter().filter_map(|name| object.get(*name));
        let mut read = errors
            .filter(|it| it.is_object())
            .map(|it| from_json(it, depth + 1));
        read.find(has_words)
    };
    let found = nested().or_else(|| {
        let each = LISTS.iter().chain(&WORDS);
        let mut read = each.filter_map(|name| from_member(object, name, depth));
        read.find(has_words)
    });
    let Some(mut inner) = found else {
        return outer;
    };
    if let Some(error) = &mut inner.error {
        add_names(error, object);
    }
    Said {
        status: inner.status.or(outer.status),
        request_id: outer.request_id.or(inner.request_id),
        ..inner
    }
}

/// What a member says. One that has an error for each field stands beside words for all of them.
fn from_member(object: &Value, name: &str, depth: u8) -> Option<Said> {
    let value = object.get(name)?;
    // Of these names, others have other things.
    if matches!(name, "meta" | "issues" | "root_cause") && !value.is_array() {
        return None;
    }
    let mut said = from_json(value, depth + 1);
    if said.error.is_none() && matches!(name, "errors" | "detail") {
        said.error = by_field(fields::of_map(value, true));
    }
    let summary = || {
        let mut summaries = SUMMARIES.iter();
        let words = summaries.find_map(|name| object.get(*name)?.as_str())?;
        Some(without_page(words)).filter(|words| !words.is_empty())
    };
    if (value.is_array() || name == "errors")
        && let Some(error) = &mut said.error
        && let Some(words) = summary()
        && !error.message.contains(words)
    {
        error.message = format!("{}; {}", words.trim_end_matches('.'), error.message);
    }
    Some(said)
}

/// Adds an object's own names of its error, where the error has none.
fn add_names(error: &mut ErrorBody, object: &Value) {
    let first = |value: &mut String, names: &[&str]| {
        if value.is_empty() {
            let mut words = names.iter().map(|name| word(object, name));
            *value = words.find(|word| !word.is_empty()).unwrap_or_default();
        }
    };
    first(
        &mut error.code,
        &["code", "error_code", "errorCode", "errorcode", "Code"],
    );
    // AWS says of which of its services an exception is.
    let exception = word(object, "__type");
    let exception = exception.rsplit('#').next().unwrap_or_default();
    if error.code.is_empty() {
        exception.clone_into(&mut error.code);
    }
    first(&mut error.r#type, &["type"]);
    first(&mut error.param, &["param", "target"]);
    if error.code.is_empty()
        && let Some(detail) = object.get("detail")
    {
        error.code = word(detail, "errorcode");
    }
    if error.param.is_empty() {
        error.param = fields::location(object.get("loc"));
    }
    // Google's own word says more than its number.
    let is_google = |word: &&str| word.chars().all(|it| it.is_ascii_uppercase() || it == '_');
    if let Some(named) = object.get("status").and_then(Value::as_str)
        && (object.get("code").is_some_and(Value::is_number)
            || error.code.is_empty() && is_google(&named))
    {
        named.clone_into(&mut error.code);
    }
}
