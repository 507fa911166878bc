//! Whether a JSON number and a machine number are the same value.
//!
//! Must hold: `integer` and `double` give a value iff writing that value gives a number equal to
//! the token, digit for digit after leading and trailing zeros are dropped. `1e3` is an integer;
//! `9007199254740993` is not a double.

/// The integer that a number token stands for.
pub(super) fn integer(token: &str) -> Option<i64> {
    if let Ok(value) = token.parse() {
        return Some(value);
    }
    let Decimal {
        negative,
        digits,
        exponent,
    } = Decimal::of(token);
    let zeros = usize::try_from(exponent)
        .ok()
        .filter(|zeros| digits.len() + zeros <= 19)?;
    let sign = if negative { "-" } else { "" };
    format!("{sign}{digits}{}", "0".repeat(zeros))
        .parse()
        .ok()
        .or(digits.is_empty().then_some(0))
}

/// The double that a number token stands for.
pub(super) fn double(token: &str) -> Option<f64> {
    let value: f64 = token.parse().ok()?;
    // Any decimal of up to fifteen digits survives the way through a double and its shortest text.
    let short = token.len() <= 15 && !token.contains(['e', 'E']);
    (short || (value.is_finite() && Decimal::of(token) == Decimal::of(&text(value))))
        .then_some(value)
}

/// The shortest JSON text that reads back as the same double. The value must be finite.
pub(super) fn text(value: f64) -> String {
    format!("{value:?}")
}

/// A decimal number in its one normal form: no zeros at either end of the digits, and the power of
/// ten of the last digit.
#[derive(PartialEq)]
struct Decimal {
    negative: bool,
    digits: String,
    exponent: i64,
}

impl Decimal {
    fn of(token: &str) -> Self {
        let (mantissa, exponent) = token.split_once(['e', 'E']).unwrap_or((token, "0"));
        // An exponent beyond what an i64 holds: any value far from all that a machine number holds
        // will do.
        let out_of_range = if exponent.starts_with('-') {
            i64::MIN / 2
        } else {
            i64::MAX / 2
        };
        let mut exponent = exponent
            .parse()
            .unwrap_or(out_of_range)
            .clamp(i64::MIN / 2, i64::MAX / 2);
        let unsigned = mantissa.trim_start_matches('-');
        let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
        exponent -= i64::try_from(fraction.len()).unwrap_or(i64::MAX / 4);
        let mut digits = format!("{whole}{fraction}");
        let kept = digits.trim_end_matches('0').len();
        exponent += i64::try_from(digits.len() - kept).unwrap_or_default();
        digits.truncate(kept);
        let digits = digits.trim_start_matches('0').to_owned();
        if digits.is_empty() {
            return Self {
                negative: false,
                digits,
                exponent: 0,
            };
        }
        Self {
            negative: mantissa.starts_with('-'),
            digits,
            exponent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_integer_is_taken_only_if_its_value_is_whole_and_fits() {
        let cases = [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("-0.0", Some(0)),
            ("0e400", Some(0)),
            ("5.0", Some(5)),
            ("1e3", Some(1000)),
            ("1.5e1", Some(15)),
            ("-120e-1", Some(-12)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808.0", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("1.5", None),
            ("1e-1", None),
            ("1e400", None),
            ("1e99999999999999999999", None),
            ("1e-99999999999999999999", None),
        ];
        for (token, value) in cases {
            assert_eq!(integer(token), value, "{token}");
        }
    }

    #[test]
    fn a_double_is_taken_only_if_no_digit_is_lost() {
        let taken = [
            "0.1",
            "1.0",
            "1",
            "-0.0",
            "0.7506859036913381",
            "1e300",
            "0.30000001192092896",
            "1.10",
            "5e-324",
        ];
        let lost = [
            "9007199254740993",
            "0.1000000000000000055",
            "1e400",
            "-1e400",
            "1e-400",
            "1e99999999999999999999",
        ];
        for token in taken {
            let value = double(token).unwrap_or_else(|| panic!("{token} is lost"));
            assert!(
                Decimal::of(&text(value)) == Decimal::of(token),
                "{token} became {}",
                text(value)
            );
        }
        for token in lost {
            assert_eq!(double(token), None, "{token}");
        }
    }
}
