//! The mark of a create: one pair of metadata that says which `request_id` made a resource.
//!
//! Must hold: the gateway alone writes marks. A request that names the key is refused, whatever
//! way it names it; a modification that replaces the metadata keeps the mark that is there; no
//! answer shows one.
//!
//! A mark has the `request_id`, a hash of the RPC and the caller's name, and a hash of the request:
//! so a repeat that no replica remembers is told from another request under the same id, and two
//! callers, or two RPCs, do not meet. It has no secret: whoever reads the upstream's metadata may
//! see it.

use std::fmt;

use memchr::memmem;
use ring::digest::{Context, SHA256};

use super::{Caller, Request};
use crate::{error::Error, json};

/// The key of the mark.
pub const MARK_KEY: &str = "runs_gateway_request_id";

/// The longest `request_id`, in characters.
const MAX_REQUEST_ID: usize = 64;

/// The pairs that services take.
const MAX_PAIRS: usize = 16;

/// What a create marks its resource with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mark {
    /// The `request_id` and whose it is.
    owner: String,
    /// What was asked for: a hash of it.
    fingerprint: String,
}

impl Mark {
    /// The mark of `request`, which is not marked yet.
    pub(super) fn of(
        caller: &Caller,
        rpc: &str,
        request_id: &str,
        request: &Request,
    ) -> Result<Self, Error> {
        if request_id.chars().count() > MAX_REQUEST_ID {
            let description = format!("must have at most {MAX_REQUEST_ID} characters");
            return Err(Error::invalid("request_id", description));
        }
        if request_id.chars().any(char::is_control) {
            let description = "must not have control characters";
            return Err(Error::invalid("request_id", description));
        }
        let name = caller.name.as_deref().unwrap_or_default();
        let owner = hash(&[rpc.as_bytes(), name.as_bytes()], 4);
        let body = request.body.as_deref().unwrap_or_default();
        let parts = [
            request.target.path.as_bytes(),
            request.query.as_str().as_bytes(),
            body,
        ];
        Ok(Self {
            owner: format!("{request_id} {owner}"),
            fingerprint: hash(&parts, 8),
        })
    }

    /// Whose it is, and which `request_id`: equal for all repeats, whatever they ask for.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Equal for all repeats that ask for the same.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Whether a resource with this mark was made by the same create.
    ///
    /// # Errors
    ///
    /// It was made under the same `request_id` by another request.
    pub(super) fn is(&self, mark: &str) -> Result<bool, Error> {
        match mark.rsplit_once(' ') {
            Some((owner, fingerprint)) if owner == self.owner => {
                if fingerprint == self.fingerprint {
                    Ok(true)
                } else {
                    Err(Error::RequestIdUsed)
                }
            }
            _ => Ok(false),
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.owner, self.fingerprint)
    }
}

/// So many bytes of a hash of all parts, as hexadecimal digits.
fn hash(parts: &[&[u8]], bytes: usize) -> String {
    let mut context = Context::new(&SHA256);
    for part in parts {
        // With its length, no part can pose as two.
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let hash = context.finish();
    let digit = |half: u8| char::from_digit(half.into(), 16);
    let halves = hash.as_ref()[..bytes].iter();
    halves
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(digit)
        .collect()
}

/// Refuses a body that has a mark already, in whatever metadata of it. `field` is the body's.
pub(super) fn check_unmarked(field: &str, body: &[u8]) -> Result<(), Error> {
    // An escape may hide the key.
    let may_have = [MARK_KEY.as_bytes(), b"\\u"].into_iter();
    if !may_have
        .into_iter()
        .any(|text| memmem::find(body, text).is_some())
    {
        return Ok(());
    }
    match json::find_member(body, "metadata", MARK_KEY) {
        Some(path) => Err(Error::invalid(
            format!("{field}.{path}"),
            format!("must not have the key {MARK_KEY}: it is the gateway's own"),
        )),
        None => Ok(()),
    }
}

/// The body with this mark in its metadata. `field` is the body's.
pub(super) fn marked(field: &str, body: &[u8], mark: &str) -> Result<Vec<u8>, Error> {
    let invalid = |description: &str| Error::invalid(format!("{field}.metadata"), description);
    json::with_pair(body, "metadata", (MARK_KEY, mark), MAX_PAIRS).map_err(|error| match error {
        json::NoRoom::Full => invalid(
            "has 16 pairs, and the mark of a `request_id` takes one of the 16: leave one out",
        ),
        json::NoRoom::NoObject => invalid("must be an object"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_takes_the_place_of_none_and_is_found_wherever_it_hides() {
        let mark = |body: &str| {
            let marked = marked("run", body.as_bytes(), "id 1 2");
            marked.map(|it| String::from_utf8(it).expect("text"))
        };
        let pair = format!(r#""{MARK_KEY}":"id 1 2""#);
        for (body, expected) in [
            ("{}", format!(r#"{{"metadata":{{{pair}}}}}"#)),
            (
                r#"{"a":1e400,"metadata":null}"#,
                format!(r#"{{"a":1e400,"metadata":{{{pair}}}}}"#),
            ),
            (
                r#"{"metadata":{"b":"c"},"a":[ 1 ]}"#,
                format!(r#"{{"a":[ 1 ],"metadata":{{"b":"c",{pair}}}}}"#),
            ),
        ] {
            assert_eq!(mark(body).expect("room"), expected);
            assert!(check_unmarked("run", body.as_bytes()).is_ok());
            assert!(check_unmarked("run", expected.as_bytes()).is_err());
        }
        let pairs: Vec<_> = (0..16).map(|at| format!(r#""k{at}":"v""#)).collect();
        for (body, is_full) in [
            (format!(r#"{{"metadata":{{{}}}}}"#, pairs.join(",")), true),
            (
                format!(r#"{{"metadata":{{{}}}}}"#, pairs[1..].join(",")),
                false,
            ),
            (r#"{"metadata":[]}"#.to_owned(), true),
        ] {
            assert_eq!(mark(&body).is_err(), is_full, "{body}");
        }
        for (body, path) in [
            (
                r#"{"metadata":{"runs_gateway_request_i\u0064":""}}"#,
                Some("run.metadata"),
            ),
            (
                r#"{"messages":[{},{"metadata":{"runs_gateway_request_id":1}}]}"#,
                Some("run.messages[1].metadata"),
            ),
            (
                r#"{"tools":[{"runs_gateway_request_id":1}],"text":"runs_gateway_request_id"}"#,
                None,
            ),
        ] {
            let found = check_unmarked("run", body.as_bytes());
            let field = found.err().map(|error| match error {
                Error::Invalid { field, .. } => field,
                other => panic!("{other:?}"),
            });
            assert_eq!(field.as_deref(), path, "{body}");
        }
    }

    #[test]
    fn only_the_same_create_has_the_same_mark() {
        let mark = |owner: &str, fingerprint: &str| Mark {
            owner: owner.to_owned(),
            fingerprint: fingerprint.to_owned(),
        };
        let one = mark("an id 0a", "ff");
        assert!(one.is(&one.to_string()).expect("the same"));
        assert!(!one.is("an id 0b ff").expect("another caller's"));
        assert!(!one.is("another 0a ff").expect("another id"));
        assert!(!one.is("").expect("no mark"));
        assert!(matches!(one.is("an id 0a fe"), Err(Error::RequestIdUsed)));
    }
}
