//! Tokens that admit callers, as they stand in a file.
//!
//! Must hold: tokens are kept as SHA-256 hashes, in the file as in memory, and compared in constant
//! time against all of them: neither a core dump nor a stopwatch tells one.

use std::{collections::BTreeSet, fmt};

use subtle::ConstantTimeEq as _;

use super::Tenant;

/// Hashes of the tokens that are admitted, each with its caller's name.
#[derive(Clone, Default)]
pub struct Tokens(Vec<([u8; 32], Tenant)>);

impl fmt::Debug for Tokens {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} tokens", self.0.len())
    }
}

impl Tokens {
    /// Reads a file of tokens: on each line a SHA-256 hash in hexadecimal, as `printf %s TOKEN |
    /// sha256sum` prints it, and the caller's name. Without one (or with the `-` of `sha256sum`)
    /// the hash's first letters are the name. Empty lines and lines that begin with `#` are for
    /// people.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(text).map_err(|_| "the tokens are not text".to_owned())?;
        let lines = text
            .lines()
            .map(str::trim)
            .enumerate()
            .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let parse = |(at, line): (usize, &str)| {
            let (word, name) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let hash = hash(word).ok_or_else(|| {
                format!(
                    "line {} of the tokens does not begin with a SHA-256 hash",
                    at + 1
                )
            })?;
            let name = name.trim();
            let name = if matches!(name, "" | "-") {
                &word[..8]
            } else {
                name
            };
            Ok((hash, Tenant(name.into())))
        };
        let tokens = lines.map(parse).collect::<Result<Vec<_>, String>>()?;
        if tokens.is_empty() {
            return Err("no token in it: nobody could call".to_owned());
        }
        Ok(Self(tokens))
    }

    /// How many they are, and of how many callers, by name.
    pub fn summary(&self) -> String {
        let names: BTreeSet<_> = self.0.iter().map(|(_, tenant)| &tenant.0).collect();
        format!("{} callers by {} tokens", names.len(), self.0.len())
    }

    /// The caller whose token this is.
    pub(super) fn admit(&self, token: &[u8]) -> Option<&Tenant> {
        let digest = ring::digest::digest(&ring::digest::SHA256, token);
        // To the last one, whichever it is.
        self.0.iter().fold(None, |found, (known, tenant)| {
            if known[..].ct_eq(digest.as_ref()).into() {
                Some(tenant)
            } else {
                found
            }
        })
    }
}

fn hash(hex: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf %s secret | sha256sum`
    const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b  -";

    #[test]
    fn a_file_of_tokens_is_hashes_and_words_for_people() {
        let text = format!(
            "# who may call\n\n{SECRET}\n{} the batch job\n",
            &SECRET[..64].to_uppercase()
        );
        assert_eq!(Tokens::parse(text.as_bytes()).expect("tokens").0.len(), 2);
        for wrong in ["# none", "secret", "2bb80d", &"zz".repeat(32), "ä"] {
            let error = Tokens::parse(wrong.as_bytes()).expect_err(wrong);
            assert!(!error.contains(wrong), "{error}");
        }
    }
}
