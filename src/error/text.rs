//! How long the texts of a status are: together with its details it has to stay below what clients
//! accept.

/// The longest text of an upstream that is passed on, in bytes after percent-encoding: it stands in
/// a status up to three times.
pub(super) const MAX_MESSAGE: usize = 600;

/// The longest code, type, parameter name or request id of an upstream that is passed on, in bytes.
pub(super) const MAX_WORD: usize = 128;

/// As much of a text as takes `limit` bytes after percent-encoding, which triples what is not plain
/// ASCII.
pub(super) fn truncate(text: &str, limit: usize) -> String {
    let mut used = 0;
    for (at, letter) in text.char_indices() {
        used += if matches!(letter, ' '..='~') && letter != '%' {
            1
        } else {
            3 * letter.len_utf8()
        };
        if used > limit {
            return format!("{}…", &text[..at]);
        }
    }
    text.to_owned()
}
