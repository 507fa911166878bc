//! The gateway's own pairs in the metadata of resources: marks.
//!
//! | key | says | file |
//! |---|---|---|
//! | [`CALLER`] | whose a thread or an assistant is | `isolation.rs` |
//! | [`REQUEST_ID`] | which `request_id` made a run, a message or an assistant | `create_mark.rs` |
//!
//! Must hold: the gateway alone writes marks. A request that names a key is refused, whatever way it
//! names it, and no answer and no event shows one.
//!
//! Why in metadata: all replicas see it, and it lives as long as the resource. Why text and not
//! messages: `extra_json` can hold all that a message does not.

use memchr::{memchr_iter, memmem};

use super::answerable::Answerable;
use crate::{
    error::{Error, ErrorBody},
    json,
    v1::{Assistant, Run, ThreadMessage, ThreadResource},
};

/// The key of whose a resource is.
pub(super) const CALLER: &str = "runs_gateway_caller";

/// The key of which `request_id` made a resource.
pub(super) const REQUEST_ID: &str = "runs_gateway_request_id";

const KEYS: [&str; 2] = [CALLER, REQUEST_ID];

/// What all keys begin with.
const PREFIX: &[u8] = b"runs_gateway_";

/// The most pairs that services take.
const MAX_PAIRS: usize = 16;

/// Refuses the body of a request that names a mark. `field` is the body's.
pub(super) fn refuse(field: &str, body: &[u8]) -> Result<(), Error> {
    let before = |at: usize| &body[at.saturating_sub(4)..at];
    // A name with an escape in it may read as a key.
    let may_name = memmem::find(body, b"\\u").is_some()
        || memchr_iter(b'_', body).any(|at| before(at).eq_ignore_ascii_case(b"runs"));
    if !may_name {
        return Ok(());
    }
    for key in KEYS {
        if let Some(path) = json::path_to(body, "metadata", key) {
            return Err(Error::invalid(
                format!("{field}.{path}"),
                format!("must not name {key}: it is the gateway's own"),
            ));
        }
    }
    Ok(())
}

/// The resource with this pair in its metadata. Metadata that a change does not name stay as they
/// are: there is no such member then, unless the resource `is_new`.
///
/// # Errors
///
/// The field of the resource that stands against it.
pub(super) fn put(resource: &[u8], is_new: bool, key: &str, value: &str) -> Result<String, Error> {
    let member = split(resource, "metadata")?;
    let Some(there) = member.value.or(is_new.then_some("null")) else {
        return Ok(member.text());
    };
    let metadata = if there == "null" { "{}" } else { there };
    let pairs = json::split_member(metadata.as_bytes(), key)
        .map_err(|_| Error::invalid("metadata", "must be an object"))?;
    if pairs.others >= MAX_PAIRS {
        let description = format!(
            "has {MAX_PAIRS} pairs, and the gateway adds one of the {MAX_PAIRS}, {key}: leave one out"
        );
        return Err(Error::invalid("metadata", description));
    }
    let metadata = pairs.with(key, &serde_json::Value::from(value).to_string());
    Ok(member.with("metadata", &metadata))
}

/// Splits off a member of a body, which is an object, as it was just written.
pub(super) fn split<'a>(body: &'a [u8], name: &str) -> Result<json::Member<'a>, Error> {
    let member = json::split_member(body, name)
        .map_err(|error| Error::invalid(name, format!("is not in an object ({error})")))?;
    if member.is_ambiguous {
        let description = format!("must name {name:?} once at most, in lower case");
        return Err(Error::invalid("extra_json", description));
    }
    Ok(member)
}

/// Whether a text may have a mark in it.
pub(super) fn may_be_in(text: &[u8]) -> bool {
    memmem::find(text, PREFIX).is_some()
}

/// A JSON text without marks. Text that is not JSON and may have one in it becomes empty.
pub(super) fn hidden(text: &[u8]) -> Vec<u8> {
    let without = |text: String, key| json::without_member(text.as_bytes(), key);
    let text = str::from_utf8(text).map(str::to_owned).ok();
    let text = text.and_then(|text| KEYS.into_iter().try_fold(text, without));
    text.unwrap_or_default().into_bytes()
}

/// Takes marks out of what an upstream says of an error.
pub(super) fn hide(error: &mut ErrorBody) {
    for text in error.texts_mut() {
        if may_be_in(text.as_bytes()) {
            "metadata".clone_into(text);
        }
    }
}

/// A resource that can have marks.
pub(super) trait Marked: Answerable {
    /// The mark under this key, of a resource whose answer showed it.
    fn mark(&self, key: &str) -> Option<String>;

    /// The same resource as a caller sees it.
    fn unmark(&mut self);
}

macro_rules! marked {
    ($($resource:ty),*) => {$(
        impl Marked for $resource {
            fn mark(&self, key: &str) -> Option<String> {
                let own = self.metadata.get(key).cloned();
                // Metadata with other values than strings is there as a whole.
                own.or_else(|| {
                    let metadata = json::split_member(self.extra_json.as_bytes(), "metadata").ok()?;
                    json::text_member(metadata.value?.as_bytes(), key)
                })
            }

            fn unmark(&mut self) {
                for key in KEYS {
                    self.metadata.remove(key);
                }
                if may_be_in(self.extra_json.as_bytes()) {
                    let text = hidden(self.extra_json.as_bytes());
                    self.extra_json = String::from_utf8(text).unwrap_or_default();
                }
            }
        }
    )*};
}

marked!(ThreadResource, Run, ThreadMessage, Assistant);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_put_into_a_body_and_nothing_else_changes() {
        let pair = r#""runs_gateway_caller":"a \" b""#;
        let cases = [
            ("{}", true, format!(r#"{{"metadata":{{{pair}}}}}"#)),
            ("{}", false, "{}".to_owned()),
            (
                r#"{"a":1e400,"metadata":null}"#,
                false,
                format!(r#"{{"a":1e400,"metadata":{{{pair}}}}}"#),
            ),
            (
                r#"{"metadata":{}}"#,
                false,
                format!(r#"{{"metadata":{{{pair}}}}}"#),
            ),
            (
                r#"{"metadata":{"a":"b"},"x":[1.0]}"#,
                true,
                format!(r#"{{"x":[1.0],"metadata":{{"a":"b",{pair}}}}}"#),
            ),
        ];
        for (body, is_new, expected) in cases {
            let marked = put(body.as_bytes(), is_new, CALLER, "a \" b").expect(body);
            assert_eq!(marked, expected);
        }
        let pairs = |count: usize| {
            let pairs: Vec<_> = (0..count).map(|at| format!("\"k{at}\":\"v\"")).collect();
            format!("{{\"metadata\":{{{}}}}}", pairs.join(","))
        };
        put(pairs(15).as_bytes(), true, CALLER, "x").expect("15 pairs");
        for wrong in [
            &pairs(16),
            r#"{"metadata":{},"metadata":{}}"#,
            r#"{"Metadata":{}}"#,
            r#"{"metadata":[]}"#,
            r#"{"metadata":"x"}"#,
        ] {
            put(wrong.as_bytes(), true, CALLER, "x").expect_err(wrong);
            put(wrong.as_bytes(), false, CALLER, "x").expect_err(wrong);
        }
    }

    #[test]
    fn a_name_of_a_mark_is_refused_however_it_is_written() {
        let cases = [
            (
                r#"{"metadata":{"runs_gateway_caller":"x"}}"#,
                Some("run.metadata"),
            ),
            (
                r#"{"metadata":{"RUNS_gateway_caller":"x"}}"#,
                Some("run.metadata"),
            ),
            (
                r#"{"metadata":{"\u0072uns_gateway_request_i\u0064":1}}"#,
                Some("run.metadata"),
            ),
            (
                r#"{"messages":[{},{"metadata":{"runs_gateway_request_id":"x"}}]}"#,
                Some("run.messages[1].metadata"),
            ),
            (r#"{"content":"runs_gateway_caller"}"#, None),
            (r#"{"metadata":{"a":"runs_gateway_caller"}}"#, None),
            (r#"{"tools":[{"runs_gateway_request_id":1}]}"#, None),
        ];
        for (body, path) in cases {
            let field = match refuse("run", body.as_bytes()) {
                Ok(()) => None,
                Err(Error::Invalid { field, .. }) => Some(field),
                Err(other) => panic!("{other:?}"),
            };
            assert_eq!(field.as_deref(), path, "{body}");
        }
    }

    #[test]
    fn no_mark_is_left_in_what_is_shown() {
        let cases = [
            (
                r#"{"metadata":{"runs_gateway_caller":"x","a":"b"}}"#,
                r#"{"metadata":{"a":"b"}}"#,
            ),
            (
                r#"[{"metadata":{"runs_gateway_caller":"x","runs_gateway_request_id":"y"}}]"#,
                r#"[{"metadata":{}}]"#,
            ),
            ("no JSON: runs_gateway_caller", ""),
        ];
        for (text, expected) in cases {
            assert!(may_be_in(text.as_bytes()));
            assert_eq!(hidden(text.as_bytes()), expected.as_bytes());
        }
    }
}
