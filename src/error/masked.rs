//! What an upstream says of the gateway's own key, for a log.
//!
//! Must hold: nothing that may be a part of a key is left. Services repeat keys whole, or their
//! ends; so what is left is known by what it is: a plain word, or a small number.

/// The most words that are told.
const MAX_WORDS: usize = 40;

/// No plain word is longer, in letters.
const MAX_LETTERS: usize = 16;

/// The most punctuation around a plain word.
const MAX_MARKS: usize = 4;

/// The same words, with all masked that may be a part of a key.
pub(super) fn masked(words: &str) -> String {
    let each = words.split_whitespace().take(MAX_WORDS);
    let told: Vec<_> = each
        .map(|word| if is_plain(word) { word } else { "***" })
        .collect();
    told.join(" ")
}

fn is_plain(word: &str) -> bool {
    let whole = word.len();
    let word = word.trim_matches(|letter: char| letter.is_ascii_punctuation());
    if word.is_empty() || whole - word.len() > MAX_MARKS {
        return false;
    }
    let is_number = word.len() <= 3 && word.bytes().all(|byte| byte.is_ascii_digit());
    let rest = word.get(1..).unwrap_or_default();
    let is_word = word.len() <= MAX_LETTERS
        && word.starts_with(|first: char| first.is_ascii_alphabetic())
        && rest.bytes().all(|byte| byte.is_ascii_lowercase());
    // `API`, `HTTP`.
    let is_name = word.len() <= 4 && word.bytes().all(|byte| byte.is_ascii_uppercase());
    is_number || is_word || is_name
}

#[cfg(test)]
mod tests {
    use super::masked;

    #[test]
    fn only_plain_words_are_left() {
        let table = [
            (
                "Incorrect API key provided: sk-o**n. You can find your API key at https://x.y/z.",
                "Incorrect API key provided: *** You can find your API key at ***",
            ),
            ("key 'abcDEF' (401) 12345", "key *** (401) ***"),
            ("Bearer SECRET", "Bearer ***"),
            ("abcdefghijklmnopqrstuvwxyz", "***"),
            ("sk_live", "***"),
            ("!#!!#!#!!#!!##!!", "***"),
            ("no!#!!#!#!!#!!##!!", "***"),
            ("\u{fc}ber", "***"),
            ("", ""),
        ];
        for (words, left) in table {
            assert_eq!(masked(words), left, "{words}");
        }
        assert_eq!(
            masked(&"no ".repeat(1000)).split(' ').count(),
            super::MAX_WORDS
        );
    }
}
