//! The `grpc-timeout` header.

use std::time::Duration;

use http::HeaderMap;

use crate::error::Error;

/// Takes the time that the caller gives the call, counted from now; `None` if it sets none.
///
/// The protocol does not say what to do with a malformed one. Ignoring it, as some servers do,
/// would turn a call with a bound into one without; `INTERNAL`, as others answer, would count a
/// caller's mistake as ours. Zero is no positive integer, but callers whose deadline has just
/// passed do send it.
pub(super) fn take(headers: &mut HeaderMap) -> Result<Option<Duration>, Error> {
    let Some(value) = headers.remove("grpc-timeout") else {
        return Ok(None);
    };
    match parse(value.as_bytes()) {
        Some(timeout) => Ok(Some(timeout)),
        None => Err(Error::invalid(
            "grpc-timeout",
            "must be one to eight digits and one of H, M, S, m, u, n",
        )),
    }
}

fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits
        .iter()
        .fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(number * 3600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_and_nothing_else_is_a_timeout() {
        let table = [
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("4m", Some(Duration::from_millis(4))),
            ("5u", Some(Duration::from_micros(5))),
            ("6n", Some(Duration::from_nanos(6))),
            ("00000001S", Some(Duration::from_secs(1))),
            ("0S", Some(Duration::ZERO)),
            ("", None),
            ("S", None),
            ("5", None),
            ("123456789S", None),
            ("+1S", None),
            ("-1S", None),
            ("1.5S", None),
            ("1 S", None),
            ("1s", None),
            ("1h", None),
            ("1SS", None),
        ];
        for (header, timeout) in table {
            assert_eq!(parse(header.as_bytes()), timeout, "{header:?}");
        }
    }
}
