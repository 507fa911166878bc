//! The HTTP status that an error stands for, where its answer has none of its own.
//!
//! Must hold: pure. A status that stands in the body counts before what its names say, and these
//! before its words.

use serde_json::Value;

use super::{Said, word};

/// Parts of names, in lower case and without marks, and the status that each stands for.
const NAMES: [(&str, u16); 22] = [
    ("ratelimit", 429),
    ("throttl", 429),
    ("toomanyrequests", 429),
    ("insufficientquota", 429),
    ("quotaexceeded", 429),
    ("resourceexhausted", 429),
    ("overloaded", 503),
    ("unavailable", 503),
    ("timeout", 504),
    ("deadlineexceeded", 504),
    ("authentication", 401),
    ("unauthenticated", 401),
    ("unauthorized", 401),
    ("invalidapikey", 401),
    ("permission", 403),
    ("accessdenied", 403),
    ("notfound", 404),
    ("failedprecondition", 400),
    ("invalidrequest", 400),
    ("invalidargument", 400),
    ("validation", 400),
    ("badrequest", 400),
];

/// gRPC's codes, which a grpc-gateway writes beside `details`.
const GRPC_CODES: [(u64, u16); 10] = [
    (3, 400),
    (4, 504),
    (5, 404),
    (7, 403),
    (8, 429),
    (9, 400),
    (10, 409),
    (12, 501),
    (14, 503),
    (16, 401),
];

/// The status that an error stands for whose answer has none, such as an `error` event.
pub(in crate::upstream) fn status_of(said: &Said) -> u16 {
    let error = said.error.as_ref();
    let by_names = || {
        let names = error.map(|error| format!("{} {}", error.code, error.r#type))?;
        let names = letters(&names);
        let mut known = NAMES.iter();
        known.find_map(|(name, status)| names.contains(name).then_some(*status))
    };
    let by_words = || says_rate_limit(&error?.message).then_some(429);
    said.status
        .or_else(by_names)
        .or_else(by_words)
        .unwrap_or(500)
}

/// Whether words say that there were too many requests.
fn says_rate_limit(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    let has = |words: &&str| message.contains(words);
    let is_over = || ["exceed", "reached", "hit"].iter().any(has);
    ["too many requests", "throttled"].iter().any(has) || has(&"rate limit") && is_over()
}

/// A name in one spelling: `RateLimit`, `rate_limit` and `Rate Limit` are one.
pub(super) fn letters(name: &str) -> String {
    let letters = name.chars().filter(char::is_ascii_alphanumeric);
    letters.map(|letter| letter.to_ascii_lowercase()).collect()
}

/// The HTTP error status that stands in an object, as a number or as digits.
pub(super) fn of_object(object: &Value) -> Option<u16> {
    const MEMBERS: [&str; 6] = [
        "statusCode",
        "status_code",
        "status",
        "http_status",
        "code",
        "error_code",
    ];
    let each = |name: &&str| {
        let word = word(object, name).to_ascii_lowercase();
        let digits = word.strip_prefix("http").unwrap_or(&word);
        let digits = digits.trim_start_matches(['_', '-', ' ']);
        digits
            .strip_suffix(".0")
            .unwrap_or(digits)
            .parse::<u16>()
            .ok()
    };
    let is_error = |status: &u16| (400..600).contains(status);
    let status = MEMBERS.iter().filter_map(each).find(is_error);
    status.or_else(|| of_grpc_code(object))
}

fn of_grpc_code(object: &Value) -> Option<u16> {
    let code = object.get("code")?.as_u64()?;
    object.get("details")?.as_array()?;
    let mut known = GRPC_CODES.iter();
    known.find_map(|(number, status)| (*number == code).then_some(*status))
}
