//! The mark of a create: one pair of metadata that says which `request_id` made a resource.
//!
//! A mark has the `request_id`, a hash of the RPC and the caller's name, and a hash of the request:
//! so a repeat that no replica remembers is told from another request under the same id, and two
//! callers, or two RPCs, do not meet. It has no secret: whoever reads the upstream's metadata may
//! see it.

use std::fmt;

use ring::digest::{Context, SHA256};

use super::{caller::Caller, request::Request};
use crate::error::Error;

/// The longest `request_id`, in characters.
const MAX_REQUEST_ID: usize = 64;

/// What a create marks its resource with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CreateMark {
    /// The `request_id` and whose it is.
    owner: String,
    /// What was asked for: a hash of it.
    fingerprint: String,
}

impl CreateMark {
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

impl fmt::Display for CreateMark {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_create_has_the_same_mark() {
        let mark = |owner: &str, fingerprint: &str| CreateMark {
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
