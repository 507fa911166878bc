//! The mark of a caller: whose a thread or an assistant is.
//!
//! Must hold: it is a keyed hash, so that who sees a mark learns no name, and makes none.

use std::fmt;

use ring::hmac;

/// The secret of the marks.
#[derive(Clone)]
pub struct MarkKey(hmac::Key);

impl MarkKey {
    /// Under this secret. A short one can be found out by who sees marks.
    pub fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    pub(super) fn mark(&self, name: &str) -> CallerMark {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(b"runs-gateway caller\0");
        context.update(name.as_bytes());
        let mut hex = [0; 64];
        for (byte, digits) in context.sign().as_ref().iter().zip(hex.chunks_exact_mut(2)) {
            digits[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
            digits[1] = b"0123456789abcdef"[usize::from(byte & 15)];
        }
        CallerMark(hex)
    }
}

impl fmt::Debug for MarkKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("MarkKey")
    }
}

/// Whose a resource is: a keyed hash of its caller's name, as hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CallerMark([u8; 64]);

impl CallerMark {
    /// The digits.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(name: &str) -> CallerMark {
        MarkKey::new(&[7; 32]).mark(name)
    }

    #[test]
    fn a_mark_is_the_hmac_of_the_name() {
        let marks = [mark("a"), mark("b"), MarkKey::new(&[8; 32]).mark("a")];
        assert_eq!(mark("a"), marks[0]);
        assert!(marks[0] != marks[1] && marks[0] != marks[2]);
        assert!(marks[0].as_str().len() == 64);
    }
}
