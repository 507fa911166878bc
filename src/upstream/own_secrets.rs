//! The gateway's own secrets towards the upstream, so that none is repeated to a caller.
//!
//! Must hold: whatever an upstream says of an error, in whatever shape and with whatever status, the
//! caller reads no key of the gateway's in it, and no value of a header that was given by a flag. A
//! key that was replaced counts on: what was asked with it may still be answered.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use secrecy::{ExposeSecret as _, SecretString};

use crate::error::ErrorBody;

/// As many secrets are known, those that were used last: a key that changes leaves some behind.
const MAX_SECRETS: usize = 16;

/// What is shorter, in bytes, is no secret, and stands in words that say something else.
const MIN_SECRET: usize = 8;

/// What stands in the place of a secret.
const MASK: &str = "***";

/// Secrets that are in use, and those before them.
#[derive(Debug, Default)]
pub(super) struct OwnSecrets(Mutex<VecDeque<SecretString>>);

impl OwnSecrets {
    /// A secret is in use from now on.
    pub(super) fn add(&self, secret: &str) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if secret.len() < MIN_SECRET || known.iter().any(|it| it.expose_secret() == secret) {
            return;
        }
        known.truncate(MAX_SECRETS - 1);
        known.push_front(SecretString::from(secret));
    }

    /// Takes them out of what an upstream says of an error.
    pub(super) fn hide(&self, error: &mut ErrorBody) {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for text in error.texts_mut() {
            for secret in &*known {
                if text.contains(secret.expose_secret()) {
                    *text = text.replace(secret.expose_secret(), MASK);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_and_what_was_before_it_is_taken_out_of_all_texts() {
        let secrets = OwnSecrets::default();
        let of = |number: usize| format!("sk-secret-{number:02}");
        for number in 0..=MAX_SECRETS {
            secrets.add(&of(number));
        }
        secrets.add("k");
        let said = |text: String| ErrorBody {
            message: format!("key: {text}, and {text}"),
            param: text,
            ..ErrorBody::default()
        };
        for (secret, shown) in [
            (of(MAX_SECRETS), MASK.to_owned()),
            (of(1), MASK.to_owned()),
            (of(0), of(0)),
            ("k".to_owned(), "k".to_owned()),
        ] {
            let mut error = said(secret);
            secrets.hide(&mut error);
            assert_eq!(error, said(shown));
        }
    }
}
