//! Ids of the form that services use: a prefix and 24 letters and digits.
//!
//! Must hold: no id is given twice. The randomness is that of the standard library's hash keys,
//! which is plenty: ids guard nothing here.

use std::hash::{BuildHasher, RandomState};

const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// A new id, such as `run_oyfV44CrJXYJkvb2qsd80LvJ` for the prefix `run`.
pub(super) fn new(prefix: &str) -> String {
    let mut id = format!("{prefix}_");
    for word in 0..3 {
        // Each state has keys of its own; eight letters take 48 of the hash's 64 bits.
        let mut bits = RandomState::new().hash_one(word);
        for _ in 0..8 {
            id.push(char::from(
                LETTERS[usize::try_from(bits % 62).unwrap_or_default()],
            ));
            bits /= 62;
        }
    }
    id
}
