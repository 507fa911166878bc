//! How long an upstream asks to wait: in headers, in the JSON of its error, or in its words.
//!
//! Must hold: pure; never negative, never longer than [`LONGEST`]; what cannot be understood is no
//! wish. A delay that is read here is what the caller is told and what the gateway itself keeps to.

mod dates;
mod spans;

use std::time::Duration;

use http::HeaderMap;

/// No upstream means more than this.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// No delay or date is longer, with what stands before it, in bytes.
const MAX_DELAY_TEXT: usize = 128;

/// What stands before a delay in an error's words, in lower case.
const INTRODUCTIONS: [&str; 22] = [
    "try again in",
    "try again after",
    "try again at",
    "try your request again in",
    "retry after",
    "retry-after",
    "retry_after",
    "retry at",
    "retry in",
    "retry your request after",
    "retry your request in",
    "wait for",
    "wait",
    "resets in",
    "reset in",
    "resets after",
    "reset after",
    "available in",
    "available again in",
    "retrydelay",
    "cooldown",
    "cool down",
];

/// What may stand between.
const FILLERS: [&str; 11] = [
    "(",
    ":",
    "=",
    "\"",
    "'",
    "about ",
    "approximately ",
    "at least ",
    "another ",
    "of ",
    "for ",
];

/// What headers ask for: milliseconds, then `retry-after` in seconds or as a date (RFC 9110,
/// 10.2.3). A date that has passed is no time at all. Some write a unit, several numbers (the first
/// counts), another time zone, or an ISO 8601 date.
pub(super) fn from_headers(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name)?.to_str().ok().map(str::trim);
    let milliseconds = ["retry-after-ms", "x-ms-retry-after-ms"]
        .iter()
        .find_map(|name| number(text(*name)?));
    let first = || {
        let numbers = text("retry-after")?.split(',').map(|it| number(it.trim()));
        numbers.collect::<Option<Vec<_>>>()?.first().copied()
    };
    milliseconds
        .map(|milliseconds| milliseconds / 1000.0)
        .or_else(first)
        .and_then(from_seconds)
        .or_else(|| from_text(text("retry-after")?))
}

/// A number of seconds or milliseconds in a header: digits, and maybe a fraction.
fn number(text: &str) -> Option<f64> {
    let is_part = |letter: char| letter.is_ascii_digit() || letter == '.';
    text.chars().all(is_part).then(|| text.parse().ok())?
}

/// What an error's words ask for: `Please try again in 1.898s.`, `Please retry after 26 seconds`,
/// `try again in 6m0s`. A number alone counts as seconds.
pub(super) fn from_words(message: &str) -> Option<Duration> {
    let lower = message.to_ascii_lowercase();
    let after = |words: &&'static str| {
        let found = lower.match_indices(*words);
        found
            .map(|(at, words)| at + words.len())
            .collect::<Vec<_>>()
    };
    let mut begins = INTRODUCTIONS.iter().flat_map(after);
    begins.find_map(|begin| from_text(up_to(&message[begin..], MAX_DELAY_TEXT)))
}

/// The beginning of a text, of `most` bytes or a few less.
fn up_to(text: &str, most: usize) -> &str {
    let mut ends = (0..=most.min(text.len())).rev();
    let end = ends.find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

/// The delay or date at the beginning of a text.
pub(super) fn from_text(text: &str) -> Option<Duration> {
    let lower = text.to_ascii_lowercase();
    let rest = without_fillers(&lower);
    let text = &text[text.len() - rest.len()..];
    dates::until(text).or_else(|| from_seconds(spans::seconds(rest)?))
}

fn without_fillers(mut text: &str) -> &str {
    loop {
        text = text.trim_start();
        match FILLERS.iter().find_map(|filler| text.strip_prefix(filler)) {
            Some(rest) => text = rest,
            None => return text,
        }
    }
}

/// A delay in seconds; `None` if it is none, such as a negative one. One that is too long to be
/// meant is the longest.
pub(super) fn from_seconds(seconds: f64) -> Option<Duration> {
    let seconds = seconds.min(LONGEST.as_secs_f64());
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_read_from_headers() {
        type Row<'a> = (&'a [(&'a str, &'a str)], Option<u64>);
        let cases: [Row<'_>; 25] = [
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
            (
                &[("retry-after", "100000000000000000000")],
                Some(2_592_000_000),
            ),
            (&[("retry-after", "1e300")], None),
            (&[("retry-after", "inf")], None),
            (&[("retry-after", "NaN")], None),
            (&[("retry-after", "PT30S")], Some(30_000)),
            (&[("retry-after", "1,500 ms")], Some(1_500)),
            (
                &[("retry-after", "Thu, 01 Jan 1970 00:00:00 -0000")],
                Some(0),
            ),
            (
                &[("retry-after", "Thu, 01 Jan 1970 05:00:00 +0200")],
                Some(0),
            ),
            (
                &[("x-ms-retry-after-ms", "1500"), ("retry-after", "9")],
                Some(1500),
            ),
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
            (
                "try again in 99999999999999999999 days",
                Some(2_592_000_000),
            ),
            ("try again in 1,500 ms", Some(1_500)),
            ("try again in 1,234,567 ms", Some(1_234_567)),
            ("try again in 120000 \u{b5}s", Some(120)),
            ("try again in 120000 microseconds", Some(120)),
            ("wait 30s and retry", Some(30_000)),
            ("quota will reset after 30s.", Some(30_000)),
            ("Please try again in PT30S", Some(30_000)),
            ("Retry after PT1H2M3.5S", Some(3_723_500)),
            ("try again in one minute", Some(60_000)),
            ("try again in an hour", Some(3_600_000)),
            ("cooldown 30 seconds", Some(30_000)),
            ("Cooldown of 2 min", Some(120_000)),
            ("waited too long; wait 4s", Some(4_000)),
            ("retry after 1970-01-01T00:00:00Z", Some(0)),
            ("Try again at Thu, 01 Jan 1970 00:00:00 GMT.", Some(0)),
            ("retry after 1970-99-99", None),
            ("try again in a few seconds", None),
            ("try again in 3 \u{fc}nits", None),
            ("", None),
        ];
        for (words, expected) in cases {
            let expected = expected.map(Duration::from_millis);
            assert_eq!(from_words(words), expected, "{words}");
        }
    }
}
