//! How long an upstream asks to wait: in headers, or in the words of its error.
//!
//! Must hold: pure; never negative, never longer than [`LONGEST`]; what cannot be understood is no
//! wish. A delay that is read here is what the caller is told and what the gateway itself keeps to.

use std::time::{Duration, SystemTime};

use http::HeaderMap;

/// No upstream means more than this.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// What stands before a delay in an error's words, in lower case.
const INTRODUCTIONS: [&str; 16] = [
    "try again in",
    "try again after",
    "try your request again in",
    "retry after",
    "retry-after",
    "retry_after",
    "retry in",
    "retry your request after",
    "retry your request in",
    "please wait",
    "wait for",
    "resets in",
    "reset in",
    "available in",
    "available again in",
    "retrydelay",
];

/// What may stand between.
const FILLERS: [&str; 9] = [
    "(",
    ":",
    "=",
    "\"",
    "'",
    "about",
    "approximately",
    "at least",
    "another",
];

/// Units, longest first where one begins another, and how many seconds each is.
const UNITS: [(&str, f64); 16] = [
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
    ("hours", 3600.0),
    ("hour", 3600.0),
    ("days", 86400.0),
    ("day", 86400.0),
];

/// Units of one letter. `m` is minutes: `6m0s` is how rate limits are written.
const LETTERS: [(char, f64); 4] = [('s', 1.0), ('m', 60.0), ('h', 3600.0), ('d', 86400.0)];

/// What headers ask for: `retry-after-ms`, then `retry-after` in seconds or as a date (RFC 9110,
/// 10.2.3). A date that has passed is no time at all. Some write a unit, several numbers (the first
/// counts), another name of the same time zone, or an ISO 8601 date.
pub(super) fn from_headers(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name)?.to_str().ok().map(str::trim);
    let number = |text: Option<&str>| duration(text?.parse().ok()?);
    let date = || {
        let text = text("retry-after")?;
        let named = [" UTC", " UT", " +0000", " Z"]
            .iter()
            .find_map(|zone| Some(format!("{} GMT", text.strip_suffix(zone)?)));
        let until = httpdate::parse_http_date(named.as_deref().unwrap_or(text))
            .ok()
            .or_else(|| humantime::parse_rfc3339_weak(text).ok())?;
        let left = until.duration_since(SystemTime::now());
        Some(left.unwrap_or_default().min(LONGEST))
    };
    number(text("retry-after-ms"))
        .map(|delay| delay / 1000)
        .or_else(|| number(text("retry-after")?.split(',').next()))
        .or_else(date)
        .or_else(|| spelt(&text("retry-after")?.to_ascii_lowercase()))
}

/// What an error's words ask for: `Please try again in 1.898s.`, `Please retry after 26 seconds`,
/// `try again in 6m0s`. A number alone counts as seconds.
pub(super) fn from_words(message: &str) -> Option<Duration> {
    let message = message.to_ascii_lowercase();
    let after = |words: &&str| message.split_once(*words).map(|(_, rest)| rest);
    INTRODUCTIONS.iter().filter_map(after).find_map(spelt)
}

/// A delay at the beginning of a text: numbers, each with its unit.
fn spelt(mut text: &str) -> Option<Duration> {
    loop {
        text = text.trim_start();
        match FILLERS.iter().find_map(|filler| text.strip_prefix(filler)) {
            Some(rest) => text = rest,
            None => break,
        }
    }
    if let Some(seconds) = clock(text) {
        return duration(seconds);
    }
    let mut seconds = None;
    loop {
        let digits = text
            .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
            .unwrap_or(text.len());
        // A full stop at the end is the sentence's.
        let Ok(number) = text[..digits].trim_end_matches('.').parse::<f64>() else {
            break;
        };
        let rest = text[digits..].trim_start();
        let Some((unit, rest)) = unit(rest) else {
            // More than a number: another unit than those that are known, or a count of something.
            let alone = !rest.starts_with(|letter: char| letter.is_ascii_alphabetic());
            return match seconds {
                None if alone => duration(number),
                _ => seconds.and_then(duration),
            };
        };
        seconds = Some(seconds.unwrap_or(0.0) + number * unit);
        text = rest.trim_start_matches([' ', ',']);
        text = text.strip_prefix("and ").unwrap_or(text);
    }
    seconds.and_then(duration)
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
    let word = long.filter(|(_, rest)| !rest.starts_with(|next: char| next.is_ascii_alphabetic()));
    word.or_else(|| {
        let (_, seconds) = LETTERS
            .iter()
            .find(|(letter, _)| text.starts_with(*letter))?;
        let rest = &text[1..];
        let ends = !rest.starts_with(|next: char| next.is_ascii_alphabetic());
        ends.then_some((*seconds, rest))
    })
}

fn duration(seconds: f64) -> Option<Duration> {
    let delay = Duration::try_from_secs_f64(seconds).ok()?;
    Some(delay.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_read_from_headers() {
        type Row<'a> = (&'a [(&'a str, &'a str)], Option<u64>);
        let cases: [Row<'_>; 17] = [
            (
                &[("retry-after-ms", "1500"), ("retry-after", "9")],
                Some(1500),
            ),
            (&[("retry-after", "2")], Some(2000)),
            (&[("retry-after", " 0.5 ")], Some(500)),
            (&[("retry-after", "Thu, 01 Jan 1970 00:00:00 GMT")], Some(0)),
            (
                &[("retry-after", "Thursday, 01-Jan-70 00:00:00 GMT")],
                Some(0),
            ),
            (&[("retry-after", "Thu Jan  1 00:00:00 1970")], Some(0)),
            (&[("retry-after", "Thu, 01 Jan 1970 00:00:00 UTC")], Some(0)),
            (
                &[("retry-after", "Thu, 01 Jan 1970 00:00:00 +0000")],
                Some(0),
            ),
            (&[("retry-after", "1970-01-01T00:00:00Z")], Some(0)),
            (&[("retry-after", "20s")], Some(20_000)),
            (&[("retry-after", "1m")], Some(60_000)),
            (&[("retry-after", "7, 9")], Some(7_000)),
            (&[("retry-after", "00:00:05")], Some(5_000)),
            (&[("retry-after", "-3")], None),
            (&[("retry-after", "soon")], None),
            (&[("retry-after", "1e300")], None),
            (&[], None),
        ];
        for (pairs, expected) in cases {
            let pair = |(name, value): &(&str, &str)| {
                let name: http::HeaderName = name.parse().expect("a name");
                (name, value.parse().expect("a value"))
            };
            let headers = pairs.iter().map(pair).collect();
            let expected = expected.map(Duration::from_millis);
            assert_eq!(from_headers(&headers), expected, "{pairs:?}");
        }
    }

    #[test]
    fn a_delay_is_read_from_words() {
        let cases = [
            (
                "Rate limit is exceeded. Try again in 2 seconds.",
                Some(2_000),
            ),
            (
                "Please retry after 86400 seconds. Please contact",
                Some(86_400_000),
            ),
            ("Please try again in 20s.", Some(20_000)),
            (
                "Limit 30000, Used 29620. Please try again in 1.898s. Visit",
                Some(1_898),
            ),
            ("Please try again in 864ms.", Some(864)),
            ("please try again in 6m0s", Some(360_000)),
            ("Please try again in 1h2m3.5s.", Some(3_723_500)),
            ("Too fast, retry after 26 seconds", Some(26_000)),
            ("retry in 2 minutes and 5 seconds", Some(125_000)),
            ("Please wait 30 sec before the next one", Some(30_000)),
            ("Please wait for 1 minute.", Some(60_000)),
            ("Retry-After: 7", Some(7_000)),
            ("{\"retry_after\": 3}", Some(3_000)),
            ("Retry after about 2 hours", Some(7_200_000)),
            ("retry after 5.", Some(5_000)),
            ("Try again in 00:01:30", Some(90_000)),
            ("Please try again in 01:30.", Some(90_000)),
            (r#"{"retryDelay": "8s"}"#, Some(8_000)),
            ("Quota: reset in 9s", Some(9_000)),
            ("Capacity is available in 15 seconds", Some(15_000)),
            ("Please try again in (30s)", Some(30_000)),
            ("try again in 12: it may help", Some(12_000)),
            ("Try again in a while", None),
            ("try again in 3 parsecs", None),
            ("retry after -3 seconds", None),
            ("You sent 20s of audio", None),
            ("try again in 99999999999999999999 days", None),
            ("", None),
        ];
        for (words, expected) in cases {
            let expected = expected.map(Duration::from_millis);
            assert_eq!(from_words(words), expected, "{words}");
        }
    }
}
