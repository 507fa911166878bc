//! JWTs that admit callers: signed by one issuer, for this gateway.
//!
//! Must hold:
//!
//! - A key verifies by its own algorithm. What the token says of algorithms only has to agree with
//!   that; a key, or where one is, is never taken from the token.
//! - `exp`, `iss` and `aud` are required. `exp` and `nbf` are kept, with a leeway for clocks.
//! - A claim that is not text names nobody.
//! - No word of a refusal holds anything of the token.

use std::{fmt, sync::Arc, time::Duration};

use jsonwebtoken::{
    Algorithm, Validation, decode, decode_header,
    errors::{Error, ErrorKind},
};
use serde_json::{Map, Value};

use super::{
    Tenant, crypto,
    jwks::{Jwks, Renewed},
    mesh::MAX_NAME,
};

/// How far the issuer's clock and the gateway's may be apart.
const LEEWAY: Duration = Duration::from_secs(60);

/// Whose JWTs are taken, for whom, and which claim names the caller.
#[derive(Debug, Clone)]
pub struct JwtRules {
    /// What `iss` has to be.
    pub issuer: String,
    /// One of these has to be in `aud`.
    pub audiences: Vec<String>,
    /// The claim that is the caller's name, such as `sub`.
    pub name_claim: String,
}

/// What checks JWTs. Cheap to clone; clones see the same keys.
#[derive(Clone)]
pub struct Jwt(Arc<Inner>);

struct Inner {
    keys: Jwks,
    name_claim: String,
    /// What is checked, for a key of each algorithm.
    checks: [(Algorithm, Validation); 3],
}

impl fmt::Debug for Jwt {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "JWTs by {:?}", self.0.keys)
    }
}

const NOT_A_JWT: &str = "the JWT cannot be read, or is signed by no algorithm that is taken here \
                         (RS256, ES256, EdDSA): send one as `authorization: Bearer JWT`";
const NO_KEYS: &str =
    "the gateway has no current keys of the issuer to check a JWT by: call again later";
const UNKNOWN_KEY: &str = "the JWT is signed by a key that the issuer does not publish (kid): get a \
                           new JWT";
const WITHOUT_KID: &str =
    "the JWT does not say which key signed it (kid), and the issuer has several";
const NO_NAME: &str =
    "the JWT does not name its caller: the claim of --jwt-name-claim has to be text";

impl Jwt {
    /// Checks JWTs by these rules and keys.
    pub fn new(rules: JwtRules, keys: Jwks) -> Self {
        crypto::install();
        let check = |algorithm| {
            let mut check = Validation::new(algorithm);
            check.leeway = LEEWAY.as_secs();
            check.validate_nbf = true;
            check.set_required_spec_claims(&["exp", "iss", "aud"]);
            check.set_issuer(&[&rules.issuer]);
            check.set_audience(&rules.audiences);
            check
        };
        let algorithms = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];
        Self(Arc::new(Inner {
            keys,
            checks: algorithms.map(|algorithm| (algorithm, check(algorithm))),
            name_claim: rules.name_claim,
        }))
    }

    /// If the key of this JWT is not known, but may be soon: what is to be waited for before it is
    /// checked.
    pub(super) fn renewal(&self, token: &[u8]) -> Option<Renewed> {
        // What is no JWT is no reason to ask the issuer.
        let header = decode_header(token).ok()?;
        self.0.keys.renewal(header.kid.as_deref())
    }

    /// The caller that the token names. The error says what is wrong with the token.
    pub(super) fn caller(&self, token: &[u8]) -> Result<Tenant, &'static str> {
        let header = decode_header(token).map_err(|error| refusal(&error))?;
        let keys = self.0.keys.get().ok_or(NO_KEYS)?;
        let key = keys.find(header.kid.as_deref(), header.alg);
        let key = key.ok_or(if header.kid.is_some() {
            UNKNOWN_KEY
        } else {
            WITHOUT_KID
        })?;
        let mut checks = self.0.checks.iter();
        let (_, check) = checks
            .find(|(algorithm, _)| *algorithm == key.algorithm)
            .ok_or(UNKNOWN_KEY)?;
        let claims: Map<String, Value> = decode(token, &key.decoding, check)
            .map_err(|error| refusal(&error))?
            .claims;
        match claims.get(&self.0.name_claim) {
            Some(Value::String(name)) if is_name(name) => Ok(Tenant(name.as_str().into())),
            _ => Err(NO_NAME),
        }
    }
}

/// Whether this looks like a JWT, and not like a token of another kind: three parts.
pub(super) fn is_jwt(token: &[u8]) -> bool {
    memchr::memchr_iter(b'.', token).count() == 2
}

/// What is logged and shared out by: text without line breaks and the like, within a length.
fn is_name(name: &str) -> bool {
    !name.trim().is_empty() && name.len() <= MAX_NAME && !name.chars().any(char::is_control)
}

fn refusal(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::ExpiredSignature => "the JWT has expired: get a new one",
        ErrorKind::ImmatureSignature => "the JWT is not valid yet (nbf)",
        ErrorKind::InvalidAudience => "the JWT is for somebody else (aud): ask for this gateway's",
        ErrorKind::InvalidIssuer => "the JWT is of another issuer (iss) than this gateway's",
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) => {
            "the JWT has no exp, iss or aud, or one (or nbf) that is not of its type"
        }
        ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => {
            "the JWT is not signed by the algorithm of its key"
        }
        ErrorKind::InvalidSignature => "the signature of the JWT is wrong",
        _ => NOT_A_JWT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jwt_has_three_parts() {
        for (token, expected) in [
            ("a.b.c", true),
            ("a.b.", true),
            ("secret", false),
            ("a.b", false),
            // Encrypted ones have five.
            ("a.b.c.d.e", false),
        ] {
            assert_eq!(is_jwt(token.as_bytes()), expected, "{token}");
        }
    }

    #[test]
    fn a_name_is_one_line_of_text() {
        for (name, expected) in [
            ("the batch job", true),
            ("spiffe://d/s", true),
            ("", false),
            (" ", false),
            ("a\nb", false),
            (&"a".repeat(MAX_NAME), true),
            (&"a".repeat(MAX_NAME + 1), false),
        ] {
            assert_eq!(is_name(name), expected, "{name:?}");
        }
    }
}
