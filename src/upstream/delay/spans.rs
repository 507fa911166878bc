//! Spans of time as they are written: `1.898s`, `6m0s`, `2 minutes and 5 seconds`, `00:01:30`,
//! `PT30S`, `one minute`.
//!
//! Must hold: pure. A number with a unit that is not known is no span; one alone is of seconds.

/// Units, longest first where one begins another, and how many seconds each is.
const UNITS: [(&str, f64); 25] = [
    ("nanoseconds", 1e-9),
    ("nanosecond", 1e-9),
    ("ns", 1e-9),
    ("microseconds", 1e-6),
    ("microsecond", 1e-6),
    ("us", 1e-6),
    // The micro sign, and the Greek letter.
    ("\u{b5}s", 1e-6),
    ("\u{3bc}s", 1e-6),
    ("milliseconds", 0.001),
    ("millisecond", 0.001),
    ("msecs", 0.001),
    ("ms", 0.001),
    ("seconds", 1.0),
    ("second", 1.0),
    ("secs", 1.0),
    ("sec", 1.0),
    ("minutes", 60.0),
    ("minute", 60.0),
    ("mins", 60.0),
    ("min", 60.0),
    ("hrs", 3600.0),
    ("hours", 3600.0),
    ("hour", 3600.0),
    ("days", 86400.0),
    ("day", 86400.0),
];

/// Units of one letter. `m` is minutes: `6m0s` is how rate limits are written.
const LETTERS: [(char, f64); 4] = [('s', 1.0), ('m', 60.0), ('h', 3600.0), ('d', 86400.0)];

/// Numbers in words.
const NUMBERS: [(&str, f64); 12] = [
    ("an ", 1.0),
    ("a ", 1.0),
    ("one ", 1.0),
    ("two ", 2.0),
    ("three ", 3.0),
    ("four ", 4.0),
    ("five ", 5.0),
    ("six ", 6.0),
    ("seven ", 7.0),
    ("eight ", 8.0),
    ("nine ", 9.0),
    ("ten ", 10.0),
];

/// The span at the beginning of a text in lower case, in seconds: numbers, each with its unit.
pub(super) fn seconds(text: &str) -> Option<f64> {
    iso(text)
        .or_else(|| clock(text))
        .or_else(|| in_words(text))
        .or_else(|| in_numbers(text))
}

fn in_words(text: &str) -> Option<f64> {
    let (number, rest) = NUMBERS
        .iter()
        .find_map(|(word, number)| Some((number, text.strip_prefix(word)?)))?;
    Some(number * unit(rest)?.0)
}

/// A duration of ISO 8601, of days and less.
fn iso(text: &str) -> Option<f64> {
    let text = text.strip_prefix('p')?;
    let (days, time) = text.split_once('t').unwrap_or((text, ""));
    let end = |text: &str| text.find(|it: char| !it.is_ascii_alphanumeric() && it != '.');
    let time = &time[..end(time).unwrap_or(time.len())];
    let parts = [days, time.trim_end_matches('.')]
        .into_iter()
        .filter(|part| !part.is_empty());
    parts
        .map(in_numbers)
        .reduce(|days, time| Some(days? + time?))?
}

fn in_numbers(mut text: &str) -> Option<f64> {
    let mut seconds = None;
    loop {
        let Some((number, rest)) = number(text) else {
            return seconds;
        };
        let Some((unit, rest)) = unit(rest) else {
            // More than a number: another unit than those that are known, or a count of something.
            let alone = !rest.starts_with(|it: char| it.is_alphanumeric() || it == '-');
            return seconds.or(alone.then_some(number));
        };
        seconds = Some(seconds.unwrap_or(0.0) + number * unit);
        text = rest.trim_start_matches([' ', ',']);
        text = text.strip_prefix("and ").unwrap_or(text);
    }
}

/// The number at the beginning of a text, and what follows it. Commas may stand between thousands.
fn number(text: &str) -> Option<(f64, &str)> {
    let end = |text: &str, more: &[char]| {
        let ends = |letter: char| !letter.is_ascii_digit() && !more.contains(&letter);
        text.find(ends).unwrap_or(text.len())
    };
    let mut whole = end(text, &[]);
    if (1..=3).contains(&whole) {
        while let Some(rest) = text[whole..].strip_prefix(',')
            && end(rest, &[]) == 3
        {
            whole += 4;
        }
    }
    let length = whole + end(&text[whole..], &['.']);
    // A full stop at the end is the sentence's.
    let digits = text[..length].trim_end_matches('.').replace(',', "");
    Some((digits.parse().ok()?, text[length..].trim_start()))
}

/// A delay as a clock shows it, in seconds: `01:30`, `00:01:30`.
fn clock(text: &str) -> Option<f64> {
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != ':');
    let parts: Vec<_> = text[..end.unwrap_or(text.len())].split(':').collect();
    if !(2..=3).contains(&parts.len()) {
        return None;
    }
    parts.iter().try_fold(0.0, |seconds, part| {
        Some(seconds * 60.0 + part.parse::<f64>().ok()?)
    })
}

/// The unit at the beginning of a text, in seconds, and what follows it.
fn unit(text: &str) -> Option<(f64, &str)> {
    let long = UNITS
        .iter()
        .find_map(|(name, seconds)| Some((*seconds, text.strip_prefix(name)?)));
    let word = long.filter(|(_, rest)| !rest.starts_with(|next: char| next.is_alphabetic()));
    word.or_else(|| {
        let (_, seconds) = LETTERS
            .iter()
            .find(|(letter, _)| text.starts_with(*letter))?;
        let rest = &text[1..];
        let ends = !rest.starts_with(|next: char| next.is_alphabetic());
        ends.then_some((*seconds, rest))
    })
}
