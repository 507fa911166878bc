//! What an upstream says of its error: one reader for every shape that services, frameworks and
//! edges give their errors, in an answer or in an `error` event.
//!
//! | who | shape |
//! |---|---|
//! | `OpenAI`, Azure | `{"error":{"message","type","param","code"}}`; `code` may be the status |
//! | AI/ML API, Nest | `{"message","statusCode",…}`; `message` may embed another service's JSON |
//! | `FastAPI` | `{"detail":"words"}`, `{"detail":[{"loc","msg","type"}]}` |
//! | RFC 9457 | `{"title","detail","status"}`, with `errors`: a map or a list of fields |
//! | Django | `{"field":["words"]}`, `{"detail":"words"}` |
//! | Google | `{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message"}}`, also in a list |
//! | Apigee | `{"fault":{"faultstring","detail":{"errorcode"}}}` |
//! | others | `{"error":"words"}`, `{"error","error_description"}`, `{"errors":[…]}`, `"words"` |
//! | others | `{"error_msg","error_code"}` |
//! | no JSON | plain text |
//!
//! Must hold: pure; what comes out is bounded. A page (HTML) is for people: none of its words are
//! passed on. That a *route* is missing is said only of a body that was read whole.

mod fields;

use serde_json::Value;

use self::fields::{MAX_DEPTH, MAX_LISTED};
use crate::{
    error::{ErrorBody, FieldError},
    json,
};

/// The longest plain text that is passed on, in bytes.
const MAX_TEXT: usize = 2 << 10;

/// What a body says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// The error; `None` if the body has no words of a service's.
    pub(super) error: Option<ErrorBody>,
    /// The HTTP status that stands in the body.
    pub(super) status: Option<u16>,
    /// The upstream's id of the request.
    pub(super) request_id: Option<String>,
    /// What answered is a server that has no such route, not the service: of a 404.
    pub(super) missing_route: bool,
    /// What answered is a server's TLS port, to a request in the clear.
    pub(super) wants_tls: bool,
}

/// Reads a body that is there as a whole.
pub(super) fn read(text: &[u8], content_type: &str) -> Said {
    let text = without_mark(text).trim_ascii();
    let said = match serde_json::from_slice::<Value>(text) {
        Ok(document) => from_document(&document),
        Err(_) => Said {
            error: plain(text, content_type),
            ..Said::default()
        },
    };
    let cut = said.error.is_none() && looks_like_json(text) && !json::is_whole(text);
    let missing_route = match &said.error {
        Some(error) => is_missing_route(&error.message),
        // Nobody who knows of runs says nothing about the one that is not there.
        None => !cut,
    };
    Said {
        missing_route,
        wants_tls: wants_tls(text, content_type),
        ..said
    }
}

/// Whether a TLS port says that it was spoken to in the clear. Only a server's own words: a service
/// may repeat those of a request.
fn wants_tls(text: &[u8], content_type: &str) -> bool {
    const PAGES: [&[u8]; 2] = [
        b"The plain HTTP request was sent to HTTPS port",
        b"speaking plain HTTP to an SSL-enabled server port",
    ];
    const TEXTS: [&[u8]; 2] = [
        b"Client sent an HTTP request to an HTTPS server.",
        b"This combination of host and port requires TLS.",
    ];
    let has = |words: &&[u8]| memchr::memmem::find(text, words).is_some();
    TEXTS.contains(&text) || is_page(text, content_type) && PAGES.iter().any(has)
}

/// Whether JSON that is no resource is an error: some upstreams answer so with status 200, and
/// proxies report their own failures so, in an event without a name.
pub(crate) fn is_error(text: &[u8]) -> bool {
    serde_json::from_slice(without_mark(text)).is_ok_and(|document| says_error(&document))
}

fn says_error(document: &Value) -> bool {
    // What no resource has.
    const NAMES: [&str; 8] = [
        "detail",
        "errors",
        "fault",
        "error_msg",
        "error_message",
        "errorMessage",
        "error_code",
        "errorCode",
    ];
    let has = |name: &str| {
        let value = document.get(name);
        value.is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false)))
    };
    let is_marked = ["object", "type"]
        .iter()
        .any(|name| document.get(*name).and_then(Value::as_str) == Some("error"));
    let has_code =
        || has("statusCode") || status(document).is_some() || is_word(document.get("code"));
    let has_words = || NAMES.into_iter().any(has) || has("message") && has_code();
    match document {
        Value::Array(all) => all.first().is_some_and(says_error),
        Value::Object(_) => is_marked || has("error") || !has("id") && has_words(),
        _ => false,
    }
}

/// A name, and not a number in digits.
fn is_word(value: Option<&Value>) -> bool {
    let word = value.and_then(Value::as_str);
    word.is_some_and(|word| word.contains(|letter: char| letter.is_ascii_alphabetic()))
}

/// The status that an error stands for whose answer has none, such as an `error` event: the one in
/// its body, else by its words.
pub(super) fn status_of(said: &Said) -> u16 {
    const WORDS: [(&str, u16); 20] = [
        ("rate_limit", 429),
        ("ratelimit", 429),
        ("throttl", 429),
        ("too_many_requests", 429),
        ("insufficient_quota", 429),
        ("quota_exceeded", 429),
        ("resource_exhausted", 429),
        ("overloaded", 503),
        ("unavailable", 503),
        ("timeout", 504),
        ("deadline_exceeded", 504),
        ("authentication", 401),
        ("unauthenticated", 401),
        ("unauthorized", 401),
        ("invalid_api_key", 401),
        ("permission", 403),
        ("not_found", 404),
        ("invalid_request", 400),
        ("invalid_argument", 400),
        ("bad_request", 400),
    ];
    let words = said.error.as_ref().map(|error| {
        let words = format!("{} {}", error.code, error.r#type);
        words.to_ascii_lowercase().replace([' ', '-'], "_")
    });
    let by_words = || {
        let words = words.as_deref()?;
        WORDS
            .iter()
            .find_map(|(word, status)| words.contains(word).then_some(*status))
    };
    said.status.or_else(by_words).unwrap_or(500)
}

/// The text behind a byte-order mark, which RFC 8259 (8.1) lets parsers ignore.
pub(super) fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text)
}

/// Whether the body is a page for people.
pub(super) fn is_page(text: &[u8], content_type: &str) -> bool {
    let begins = without_mark(text).trim_ascii_start();
    content_type.to_ascii_lowercase().contains("html") || begins.starts_with(b"<")
}

fn looks_like_json(text: &[u8]) -> bool {
    match text {
        [b'{' | b'"', ..] => true,
        // Not the tag of a log line, such as `[proxy] no healthy upstream`.
        [b'[', rest @ ..] => !matches!(rest.first(), Some(b'a'..=b'z' | b'A'..=b'Z')),
        _ => false,
    }
}

/// Words that are no JSON, if they are words.
fn plain(text: &[u8], content_type: &str) -> Option<ErrorBody> {
    if looks_like_json(text) || is_page(text, content_type) {
        return None;
    }
    let text = std::str::from_utf8(&text[..text.len().min(MAX_TEXT)]).or_else(|error| {
        let whole = &text[..error.valid_up_to()];
        // The last letter may have been cut; anything else is no text.
        let is_cut = error.error_len().is_none();
        std::str::from_utf8(if is_cut { whole } else { b"" })
    });
    let clean = |letter: char| if letter.is_control() { ' ' } else { letter };
    let message: String = text.ok()?.chars().map(clean).collect();
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    (!message.is_empty()).then(|| ErrorBody {
        message,
        ..ErrorBody::default()
    })
}

/// The error of a whole body. One that has no words where errors have them may have them by field.
fn from_document(document: &Value) -> Said {
    let said = from_json(document, 0);
    if said.error.is_some() {
        return said;
    }
    let nested = document
        .get("error")
        .map(|error| fields::of_map(error, false));
    let named = nested
        .filter(|named| !named.is_empty())
        .unwrap_or_else(|| fields::of_map(document, false));
    Said {
        error: by_field(named),
        ..said
    }
}

fn from_json(value: &Value, depth: u8) -> Said {
    if depth > MAX_DEPTH {
        return Said::default();
    }
    match value {
        Value::String(words) => from_words(words, depth),
        Value::Array(all) => from_list(all, depth),
        Value::Object(_) => from_object(value, depth),
        Value::Null | Value::Bool(_) | Value::Number(_) => Said::default(),
    }
}

/// Words, and the error of another service that they may embed: `400 {"error":{…}}`.
fn from_words(words: &str, depth: u8) -> Said {
    let embedded = words.find('{').and_then(|at| {
        let mut values = serde_json::Deserializer::from_str(&words[at..]).into_iter::<Value>();
        let said = from_json(&values.next()?.ok()?, depth + 1);
        said.error.is_some().then_some(said)
    });
    embedded.unwrap_or_else(|| Said {
        error: (!words.trim().is_empty()).then(|| ErrorBody {
            message: words.to_owned(),
            ..ErrorBody::default()
        }),
        ..Said::default()
    })
}

/// Several errors: the first one's code and type, and the words of all, each with its field.
fn from_list(all: &[Value], depth: u8) -> Said {
    let mut said: Option<Said> = None;
    let mut named = Vec::new();
    for one in all {
        let mut read = from_json(one, depth + 1);
        // RFC 7807's own example has a reason instead of words.
        let reason = one.get("reason").and_then(Value::as_str);
        if read.error.is_none() && one.get("name").is_some() {
            read.error = reason.and_then(|words| from_words(words, depth).error);
        }
        let Some(error) = &mut read.error else {
            continue;
        };
        if error.fields.is_empty() {
            let is_named = !error.param.is_empty();
            named.push(FieldError {
                field: if is_named {
                    error.param.clone()
                } else {
                    fields::named_by(one)
                },
                message: error.message.clone(),
            });
        } else {
            named.append(&mut error.fields);
        }
        said.get_or_insert(read);
        if named.len() > MAX_LISTED {
            break;
        }
    }
    let mut said = said.unwrap_or_default();
    if let Some(first) = said.error.take() {
        said.error = by_field(named).map(|error| ErrorBody {
            code: first.code,
            r#type: first.r#type,
            ..error
        });
    }
    said
}

/// One error of several, each of a field or of none.
fn by_field(mut named: Vec<FieldError>) -> Option<ErrorBody> {
    let is_cut = named.len() > MAX_LISTED;
    named.truncate(MAX_LISTED);
    let tell = |FieldError { field, message }: &FieldError| {
        if field.is_empty() || message.contains(field) {
            message.clone()
        } else {
            format!("{field}: {message}")
        }
    };
    let mut words: Vec<_> = named.iter().map(tell).collect();
    words.extend(is_cut.then(|| "and more".to_owned()));
    named.retain(|one| !one.field.is_empty());
    (!words.is_empty()).then(|| ErrorBody {
        message: words.join("; "),
        param: named
            .first()
            .map(|first| first.field.clone())
            .unwrap_or_default(),
        fields: named,
        ..ErrorBody::default()
    })
}

fn from_object(object: &Value, depth: u8) -> Said {
    // Where an error is an object in an object.
    const NESTED: [&str; 3] = ["error", "fault", "Error"];
    // Where each shape has its words, the most particular first. `error` beside other words is the
    // status in words, and `title` the kind of the problem.
    const WORDS: [&str; 16] = [
        "errors",
        "violations",
        "invalid-params",
        "faultstring",
        "detail",
        "details",
        "message",
        "msg",
        "error_description",
        "error_message",
        "error_msg",
        "errorMessage",
        "Message",
        "error",
        "title",
        "description",
    ];
    let outer = Said {
        error: None,
        status: status(object),
        request_id: ["requestId", "request_id", "requestID"]
            .iter()
            .find_map(|name| Some(object.get(name)?.as_str()?.to_owned())),
        ..Said::default()
    };
    let has_words = |said: &Said| said.error.is_some();
    let nested = || {
        let errors = NESTED.iter().filter_map(|name| object.get(*name));
        let mut read = errors
            .filter(|it| it.is_object())
            .map(|it| from_json(it, depth + 1));
        read.find(has_words)
    };
    let found = nested().or_else(|| {
        let each = WORDS.iter();
        let mut read = each.filter_map(|name| from_member(object, name, depth));
        read.find(has_words)
    });
    let Some(mut inner) = found else {
        return outer;
    };
    if let Some(error) = &mut inner.error {
        add_names(error, object);
    }
    Said {
        status: inner.status.or(outer.status),
        request_id: outer.request_id.or(inner.request_id),
        ..inner
    }
}

/// What a member says. One that has an error for each field stands beside words for all of them.
fn from_member(object: &Value, name: &str, depth: u8) -> Option<Said> {
    let value = object.get(name)?;
    let mut said = from_json(value, depth + 1);
    if said.error.is_none() && matches!(name, "errors" | "detail") {
        said.error = by_field(fields::of_map(value, true));
    }
    if matches!(name, "errors" | "violations" | "invalid-params")
        && let Some(error) = &mut said.error
        && let Some(words) = ["detail", "message", "title"]
            .iter()
            .find_map(|name| object.get(name)?.as_str())
    {
        error.message = format!("{}; {}", words.trim_end_matches('.'), error.message);
    }
    Some(said)
}

/// Adds an object's own names of its error, where the error has none.
fn add_names(error: &mut ErrorBody, object: &Value) {
    let first = |value: &mut String, names: &[&str]| {
        if value.is_empty() {
            let mut words = names.iter().map(|name| word(object, name));
            *value = words.find(|word| !word.is_empty()).unwrap_or_default();
        }
    };
    first(
        &mut error.code,
        &["code", "error_code", "errorCode", "errorcode"],
    );
    first(&mut error.r#type, &["type"]);
    first(&mut error.param, &["param"]);
    if error.code.is_empty()
        && let Some(detail) = object.get("detail")
    {
        error.code = word(detail, "errorcode");
    }
    if error.param.is_empty() {
        error.param = fields::location(object.get("loc"));
    }
    // Google's own word says more than its number.
    if object.get("code").is_some_and(Value::is_number)
        && let Some(named) = object.get("status").and_then(Value::as_str)
    {
        named.clone_into(&mut error.code);
    }
}

/// A word or number of an object, as text.
fn word(object: &Value, name: &str) -> String {
    match object.get(name) {
        Some(Value::String(word)) => word.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    }
}

/// The HTTP error status that stands in an object, as a number or as digits.
fn status(object: &Value) -> Option<u16> {
    const NAMES: [&str; 6] = [
        "statusCode",
        "status_code",
        "status",
        "http_status",
        "code",
        "error_code",
    ];
    let each = |name: &&str| word(object, name).parse::<u16>().ok();
    let is_error = |status: &u16| (400..600).contains(status);
    NAMES.iter().filter_map(each).find(is_error)
}

/// Whether these words are a framework's or an edge's own for a route that it does not have.
fn is_missing_route(message: &str) -> bool {
    const WHOLE: [&str; 14] = [
        "not found",
        "404",
        "404 not found",
        "404: not found",
        "404 page not found",
        "page not found",
        "route not found",
        "endpoint not found",
        "path not found",
        "no such route",
        "unknown route",
        "no message available",
        "default backend - 404",
        "no route matched with those values",
    ];
    const BEGINNINGS: [&str; 14] = [
        "cannot get /",
        "cannot post /",
        "cannot delete /",
        "route get:",
        "route post:",
        "route delete:",
        "route /",
        "no route for",
        "no route found for",
        "no handler found for",
        "no static resource ",
        "no resource found",
        "invalid url (",
        "the requested url was not found",
    ];
    // Django's words for a resource that is not there; for a route it has a page.
    if message == "Not found." {
        return false;
    }
    let message = message
        .trim()
        .trim_end_matches(['.', '!'])
        .to_ascii_lowercase();
    WHOLE.contains(&&*message) || BEGINNINGS.iter().any(|words| message.starts_with(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words, code, type, field, status.
    type Row = (
        &'static str,
        &'static str,
        &'static str,
        &'static str,
        &'static str,
        Option<u16>,
    );

    #[test]
    fn every_shape_is_read_as_one_thing() {
        let table: [Row; 22] = [
            (
                r#"{"error":{"message":"W","type":"t","param":"p","code":"c"}}"#,
                "W",
                "c",
                "t",
                "p",
                None,
            ),
            (
                r#"{"error":{"code":"429","message":"W"}}"#,
                "W",
                "429",
                "",
                "",
                Some(429),
            ),
            (
                r#"{"error":{"code":429,"message":"W"}}"#,
                "W",
                "429",
                "",
                "",
                Some(429),
            ),
            (
                r#"{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","message":"W"}}"#,
                "W",
                "RESOURCE_EXHAUSTED",
                "",
                "",
                Some(429),
            ),
            (
                r#"[{"error":{"code":404,"message":"W"}}]"#,
                "W",
                "404",
                "",
                "",
                Some(404),
            ),
            (
                r#"{"message":"W","statusCode":"503","path":"/"}"#,
                "W",
                "",
                "",
                "",
                Some(503),
            ),
            (
                r#"{"message":"400 {\"error\":{\"message\":\"W\",\"code\":\"c\"}} (x)","statusCode":400}"#,
                "W",
                "c",
                "",
                "",
                Some(400),
            ),
            (
                r#"{"message":["a","b"],"error":"Bad Request"}"#,
                "a; b",
                "",
                "",
                "",
                None,
            ),
            (r#"{"detail":"W"}"#, "W", "", "", "", None),
            (
                r#"{"detail":[{"loc":["body","assistant_id"],"msg":"field required","type":"missing"}]}"#,
                "assistant_id: field required",
                "",
                "missing",
                "assistant_id",
                None,
            ),
            (
                r#"{"detail":[{"loc":["body","tools",0,"type"],"msg":"A"},{"loc":["query","limit"],"msg":"B"}]}"#,
                "tools[0].type: A; limit: B",
                "",
                "",
                "tools[0].type",
                None,
            ),
            (
                r#"{"detail":{"message":"W","code":"c"}}"#,
                "W",
                "c",
                "",
                "",
                None,
            ),
            (
                r#"{"type":"about:blank","title":"T","detail":"W","status":422}"#,
                "W",
                "",
                "about:blank",
                "",
                Some(422),
            ),
            (r#"{"title":"T","status":400}"#, "T", "", "", "", Some(400)),
            (r#"{"error":"W"}"#, "W", "", "", "", None),
            (
                r#"{"error":"invalid","error_description":"W"}"#,
                "W",
                "",
                "",
                "",
                None,
            ),
            (
                r#"{"error":"Not Found","message":"W","statusCode":404}"#,
                "W",
                "",
                "",
                "",
                Some(404),
            ),
            (
                r#"{"errors":[{"message":"A"},{"message":"B"}]}"#,
                "A; B",
                "",
                "",
                "",
                None,
            ),
            (
                r#"{"object":"error","message":"W","type":"t","code":40303}"#,
                "W",
                "40303",
                "t",
                "",
                None,
            ),
            (
                r#"{"code":"bad_request","message":"W"}"#,
                "W",
                "bad_request",
                "",
                "",
                None,
            ),
            (r#""W""#, "W", "", "", "", None),
            (
                "\u{FEFF} Model\n\u{1b}overloaded ",
                "Model overloaded",
                "",
                "",
                "",
                None,
            ),
        ];
        for (text, message, code, kind, param, status) in table {
            let said = read(text.as_bytes(), "application/json");
            let error = said.error.unwrap_or_else(|| panic!("no words: {text}"));
            let seen = (
                &*error.message,
                &*error.code,
                &*error.r#type,
                &*error.param,
                said.status,
            );
            assert_eq!(seen, (message, code, kind, param, status), "{text}");
        }
    }

    #[test]
    fn a_page_a_part_and_nothing_have_no_words() {
        for (text, content_type) in [
            ("", ""),
            ("{}", ""),
            ("null", ""),
            ("[]", ""),
            (r#"{"error":null}"#, ""),
            ("<html>Sorry</html>", "text/plain"),
            ("\u{FEFF}\n <!DOCTYPE html>", ""),
            ("Sorry", "text/html; charset=utf-8"),
            (r#"{"error":{"message":"W"#, "application/json"),
        ] {
            assert_eq!(read(text.as_bytes(), content_type).error, None, "{text}");
        }
        assert_eq!(read(b"\xff\xfe\0x", "").error, None);
        let long = "\u{fc}".repeat(MAX_TEXT);
        let said = read(long.as_bytes(), "text/plain").error.expect("words");
        assert!(said.message.len() <= MAX_TEXT);
    }

    #[test]
    fn a_missing_route_is_told_from_a_missing_run() {
        let routes = [
            "",
            "{}",
            "<html>404</html>",
            r#"{"detail":"Not Found"}"#,
            r#"{"message":"Cannot GET /threads/t/runs","error":"Not Found","statusCode":404}"#,
            r#"{"message":"Route GET:/threads not found","error":"Not Found","statusCode":404}"#,
            r#"{"timestamp":"x","status":404,"error":"Not Found","path":"/threads"}"#,
            r#"{"error":{"message":"Invalid URL (GET /v1/thread)","type":"invalid_request_error"}}"#,
            r#"{"message":"no Route matched with those values"}"#,
            "404 page not found\n",
            "Not Found",
            "Cannot GET /threads",
        ];
        for text in routes {
            assert!(read(text.as_bytes(), "").missing_route, "{text}");
        }
        let runs = [
            r#"{"detail":"Run run_1 not found"}"#,
            r#"{"detail":"Not found."}"#,
            r#"{"error":{"message":"No run found with id 'run_1'."}}"#,
            "No thread found with id thread_1",
            r#"{"error":{"message":"cut"#,
        ];
        for text in runs {
            assert!(!read(text.as_bytes(), "").missing_route, "{text}");
        }
    }

    #[test]
    fn an_event_has_the_status_in_its_body_or_by_its_words() {
        let table = [
            (
                r#"{"error":{"code":"429","type":"throttling_error","message":"W"}}"#,
                429,
            ),
            (
                r#"{"error":{"type":"throttling_error","message":"W"}}"#,
                429,
            ),
            (r#"{"code":"rate_limit_exceeded","message":"W"}"#, 429),
            (
                r#"{"error":{"type":"Rate Limit Error","message":"W"}}"#,
                429,
            ),
            (r#"{"type":"overloaded_error","message":"W"}"#, 503),
            (r#"{"code":"server_error","message":"W"}"#, 500),
            (r#"{"code":"invalid_request_error","message":"W"}"#, 400),
            (r#"{"statusCode":401,"message":"W"}"#, 401),
            ("Model overloaded", 500),
            ("", 500),
        ];
        for (text, status) in table {
            assert_eq!(status_of(&read(text.as_bytes(), "")), status, "{text}");
        }
    }
}
