//! Dates until which an upstream asks to wait.
//!
//! Must hold: pure but for the clock. A date that has passed is no time at all.

use std::time::{Duration, SystemTime};

use super::LONGEST;

/// How long it is until the date at the beginning of a text.
pub(super) fn until(text: &str) -> Option<Duration> {
    let date = of_http(text).or_else(|| of_iso(text))?;
    let left = date.duration_since(SystemTime::now());
    Some(left.unwrap_or_default().min(LONGEST))
}

/// A date as HTTP has it (RFC 9110, 5.6.7), or in another time zone, as mail has it.
fn of_http(text: &str) -> Option<SystemTime> {
    if let Ok(date) = httpdate::parse_http_date(text.trim_end()) {
        return Some(date);
    }
    // `Sun, 06 Nov 1994 08:49:37 +0100`, and words behind.
    let (date, rest) = text.split_at_checked("Sun, 06 Nov 1994 08:49:37".len())?;
    let zone = rest
        .trim_start()
        .split([' ', ',', ';', '.', ')', '"'])
        .next()?;
    let local = httpdate::parse_http_date(&format!("{date} GMT")).ok()?;
    let east = Duration::from_secs(60 * minutes(zone)?);
    if zone.starts_with('-') {
        local.checked_add(east)
    } else {
        local.checked_sub(east)
    }
}

/// How many minutes a time zone is away from UTC, east or west.
fn minutes(zone: &str) -> Option<u64> {
    if matches!(zone, "GMT" | "UTC" | "UT" | "Z") {
        return Some(0);
    }
    let digits = zone.strip_prefix(['+', '-'])?.replace(':', "");
    let number: u64 = digits.parse().ok().filter(|_| digits.len() == 4)?;
    Some(number / 100 * 60 + number % 100)
}

/// A date of ISO 8601, in UTC.
fn of_iso(text: &str) -> Option<SystemTime> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || "-:.".contains(letter);
    let end = text.find(|letter| !is_part(letter)).unwrap_or(text.len());
    let date = text[..end].trim_end_matches(['.', ':', '-']);
    humantime::parse_rfc3339_weak(date).ok()
}
