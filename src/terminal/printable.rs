//! Text of others, as a terminal may have it.
//!
//! Must hold: nothing that comes out moves the cursor, changes colours, turns the direction of what
//! follows or does anything else than to be seen; but for newlines and tabs, where they are text.

use std::borrow::Cow;

/// The text with control characters made visible, but for newlines and tabs.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    visible(text, |it| is_control(it) && it != '\n' && it != '\t')
}

/// The same as a part of one line, of this many characters at most.
pub(super) fn printable_line(text: &str, most: usize) -> String {
    let mut line: String = text.chars().take(most).collect();
    if line.len() < text.len() {
        line.push('…');
    }
    visible(&line, is_control).into_owned()
}

fn visible(text: &str, is_hidden: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for it in text.chars() {
        match it {
            it if !is_hidden(it) => shown.push(it),
            // Unicode has a picture of each of these.
            '\0'..='\u{1f}' => shown.extend(char::from_u32(0x2400 + u32::from(it))),
            '\u{7f}' => shown.push('\u{2421}'),
            it => shown.extend(it.escape_unicode()),
        }
    }
    Cow::Owned(shown)
}

/// Control characters, and those that break lines or turn the direction of text.
fn is_control(it: char) -> bool {
    let breaks = ['\u{2028}', '\u{2029}'];
    let turns = ['\u{61c}', '\u{200e}', '\u{200f}'];
    it.is_control()
        || breaks.contains(&it)
        || turns.contains(&it)
        || ('\u{202a}'..='\u{202e}').contains(&it)
        || ('\u{2066}'..='\u{2069}').contains(&it)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_to_be_seen_is_made_visible() {
        let table = [
            ("plain – ÄÖ 漢字 👩‍🔬", "plain – ÄÖ 漢字 👩‍🔬"),
            ("a\nb\tc", "a\nb\tc"),
            ("\u{1b}[2J\u{1b}]0;title\u{7}", "␛[2J␛]0;title␇"),
            ("over\rwritten\u{8}", "over␍written␈"),
            ("\u{7f}\0", "␡␀"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("\u{202e}txt.exe\u{2028}", "\\u{202e}txt.exe\\u{2028}"),
        ];
        for (text, shown) in table {
            assert_eq!(printable(text), shown);
        }
        // Nothing of all that is a control character is left.
        let all: String = ('\0'..='\u{10ffff}').filter(|it| it.is_control()).collect();
        let shown: String = printable(&all)
            .chars()
            .filter(|it| it.is_control())
            .collect();
        assert_eq!(shown, "\t\n");
        assert_eq!(printable_line("a\nb\tc", 4), "a␊b␉…");
    }
}
