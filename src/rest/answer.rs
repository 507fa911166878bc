//! From an HTTP answer to a message or an [`Error`].
//!
//! Must hold: tolerance is not success. An answer of 200 is the resource that was asked for, with
//! an id, or it is an error; and no more of an answer is held in memory than the limit allows.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header};
use tokio::time::timeout;

use super::failure;
use crate::{
    error::{Error, ErrorBody, Idempotency, Rejection},
    json,
    v1::Run,
};

/// Headers of the upstream's answers that callers see as metadata.
pub const SHOWN_HEADERS: [&str; 10] = [
    "x-request-id",
    "apim-request-id",
    "openai-processing-ms",
    "openai-poll-after-ms",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
];

/// The longest header value that is passed on, in bytes.
const MAX_SHOWN_VALUE: usize = 128;

/// As much of an error's body as is read, in bytes.
const MAX_ERROR_BYTES: usize = 64 << 10;

/// As long as an error's body is waited for.
const MAX_ERROR_TIME: Duration = Duration::from_secs(2);

/// What the upstream gave.
#[derive(Debug)]
pub struct Answer<M> {
    /// The resource.
    pub message: Box<M>,
    /// Headers that the caller may see.
    pub headers: HeaderMap,
}

/// A message that the upstream answers with. Generated from the contract.
pub(super) trait Answerable: json::Document {
    /// Whether a document that was read is such a resource at all. `text` is the document.
    fn is_whole(&self, text: &[u8]) -> bool;

    /// The run, if that is what it is.
    fn run(&self) -> Option<&Run> {
        None
    }
}

/// Reads an answer to its end.
pub(super) async fn read<M: Answerable>(
    response: &mut reqwest::Response,
    idempotency: Idempotency,
    own_key: bool,
    limit: usize,
) -> Result<Answer<M>, Error> {
    let headers = shown(response.headers());
    if !response.status().is_success() {
        return Err(Box::pin(rejection(response, idempotency, own_key, headers)).await);
    }
    if response
        .headers()
        .get(header::CONTENT_ENCODING)
        .is_some_and(|it| it != "identity")
    {
        return Err(unusable("an encoding that was not asked for".to_owned()));
    }
    let text = match body(response, limit).await {
        Ok((text, true)) => text,
        Ok((_, false)) => return Err(unusable(format!("more than {limit} bytes"))),
        Err(error) => return Err(failure::cut(&error, idempotency)),
    };
    let message: Box<M> = json::decode_boxed(&text).map_err(|error| unusable(error.to_string()))?;
    if message.is_whole(&text) {
        Ok(Answer { message, headers })
    } else {
        Err(unusable("JSON of another shape".to_owned()))
    }
}

/// The upstream's id of a request, from its answer's headers.
pub(super) fn request_id(headers: &HeaderMap) -> Option<&str> {
    let ids = ["x-request-id", "apim-request-id"]
        .iter()
        .filter_map(|name| headers.get(*name)?.to_str().ok());
    ids.into_iter().find(|id| id.len() <= MAX_SHOWN_VALUE)
}

fn unusable(what: String) -> Error {
    Error::Unusable {
        what,
        request_id: None,
    }
}

/// Reads a body up to `limit` bytes, and whether that was all of it.
async fn body(
    response: &mut reqwest::Response,
    limit: usize,
) -> Result<(Bytes, bool), reqwest::Error> {
    let mut text = Bytes::new();
    while let Some(chunk) = response.chunk().await? {
        if text.len() + chunk.len() > limit {
            return Ok((text, false));
        }
        // Most bodies come in one piece, which is not copied.
        text = if text.is_empty() {
            chunk
        } else {
            joined(text, &chunk)
        };
    }
    Ok((text, true))
}

fn joined(text: Bytes, chunk: &[u8]) -> Bytes {
    let mut text = BytesMut::from(text);
    text.extend_from_slice(chunk);
    text.freeze()
}

async fn rejection(
    response: &mut reqwest::Response,
    idempotency: Idempotency,
    own_key: bool,
    headers: HeaderMap,
) -> Error {
    let status = response.status().as_u16();
    let retry_after = retry_after(response.headers());
    let should_retry = match response
        .headers()
        .get("x-should-retry")
        .map(HeaderValue::as_bytes)
    {
        Some(b"true") => Some(true),
        Some(b"false") => Some(false),
        _ => None,
    };
    let mut request_id = request_id(&headers).map(str::to_owned);
    // The status is known whatever becomes of the body: one that is cut, too large or too slow says
    // less, not nothing.
    let text = match timeout(MAX_ERROR_TIME, body(response, MAX_ERROR_BYTES)).await {
        Ok(Ok((text, _))) => text,
        Ok(Err(_)) | Err(_) => Bytes::new(),
    };
    let body = error_body(&text).map(|(body, id)| {
        request_id = request_id.take().or(id);
        body
    });
    // Messages of other errors repeat what the caller wrote.
    let said = body
        .as_ref()
        .filter(|_| matches!(status, 429 | 503))
        .and_then(|body| said_delay(&body.message));
    let retry_after = retry_after.or(said);
    Error::Rejected(Box::new(Rejection {
        status,
        body,
        request_id,
        retry_after,
        should_retry,
        idempotency,
        own_key,
        headers,
    }))
}

/// Reads an error body of one of the three known shapes, with the request id that some have in it:
///
/// - `{"error":{message,type,param,code}}`;
/// - Azure's, the same with `code` the status as a string and the others missing;
/// - the AI/ML API's `{message,path,requestId,statusCode,timestamp}`, where `message` may embed
///   another service's error as JSON.
pub(super) fn error_body(text: &[u8]) -> Option<(ErrorBody, Option<String>)> {
    let document: serde_json::Value = serde_json::from_slice(text).ok()?;
    let word = |value: &serde_json::Value, name: &str| {
        value
            .get(name)
            .and_then(|it| it.as_str())
            .unwrap_or_default()
            .to_owned()
    };
    let read = |error: &serde_json::Value| ErrorBody {
        message: word(error, "message"),
        code: word(error, "code"),
        r#type: word(error, "type"),
        param: word(error, "param"),
    };
    let error = document.get("error");
    if let Some(error) = error.filter(|error| error.is_object()) {
        return Some((read(error), None));
    }
    // Where `error` is a string beside a message it is the status in words.
    let message = document
        .get("message")
        .and_then(|it| it.as_str())
        .or_else(|| error?.as_str())?;
    let request_id = document
        .get("requestId")
        .and_then(|it| it.as_str())
        .map(str::to_owned);
    let embedded = message
        .find('{')
        .and_then(|at| serde_json::from_str::<serde_json::Value>(&message[at..]).ok());
    let body = match embedded
        .as_ref()
        .and_then(|it| it.get("error"))
        .filter(|it| it.is_object())
    {
        Some(error) => read(error),
        None => ErrorBody {
            message: message.to_owned(),
            ..read(&document)
        },
    };
    Some((body, request_id))
}

/// The error that an `error` event stands for. Its data is an error object, alone or in one of the
/// shapes of error bodies.
pub fn error_event(data: &[u8]) -> Error {
    let (body, request_id) = error_body(data).map_or((None, None), |(body, id)| (Some(body), id));
    let words = body
        .as_ref()
        .map(|body| format!("{} {}", body.code, body.r#type))
        .unwrap_or_default();
    let status = match words {
        words if words.contains("rate_limit") || words.contains("insufficient_quota") => 429,
        words if words.contains("invalid_request") => 400,
        _ => 500,
    };
    Error::Rejected(Box::new(Rejection {
        status,
        body,
        request_id,
        retry_after: None,
        should_retry: None,
        idempotency: Idempotency::Idempotent,
        own_key: false,
        headers: HeaderMap::new(),
    }))
}

/// The headers that callers may see.
fn shown(headers: &HeaderMap) -> HeaderMap {
    let mut shown = HeaderMap::new();
    for (name, value) in headers {
        let is_shown = SHOWN_HEADERS.contains(&name.as_str())
            && value.len() <= MAX_SHOWN_VALUE
            && value.to_str().is_ok();
        // The first of several.
        if is_shown && !shown.contains_key(name) {
            shown.insert(name, value.clone());
        }
    }
    shown
}

/// How long the headers ask to wait: `retry-after-ms`, then `retry-after` in seconds or as a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| {
        headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
            .map(str::trim)
    };
    let number = |text: Option<&str>| {
        text?
            .parse::<f64>()
            .ok()
            .and_then(|number| Duration::try_from_secs_f64(number).ok())
    };
    let date = || {
        let until = httpdate::parse_http_date(text("retry-after")?).ok()?;
        Some(
            until
                .duration_since(std::time::SystemTime::now())
                .unwrap_or_default(),
        )
    };
    number(text("retry-after-ms"))
        .map(|delay| delay / 1000)
        .or_else(|| number(text("retry-after")))
        .or_else(date)
}

/// How long a message asks to wait. Azure says it in words alone: "Try again in 2 seconds.",
/// "Please retry after 86400 seconds."
fn said_delay(message: &str) -> Option<Duration> {
    let message = message.to_ascii_lowercase();
    let (_, rest) = message
        .split_once("try again in ")
        .or_else(|| message.split_once("retry after "))?;
    let (number, rest) = rest.split_once(' ')?;
    rest.starts_with("second")
        .then(|| number.parse().ok().map(Duration::from_secs))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_read_from_headers_and_from_words() {
        let cases = [
            (
                vec![("retry-after-ms", "1500"), ("retry-after", "9")],
                Some(1500),
            ),
            (vec![("retry-after", "2")], Some(2000)),
            (vec![("retry-after", "0.5")], Some(500)),
            (
                vec![("retry-after", "Thu, 01 Jan 1970 00:00:00 GMT")],
                Some(0),
            ),
            (vec![("retry-after", "-3")], None),
            (vec![("retry-after", "soon")], None),
            (vec![], None),
        ];
        for (pairs, expected) in cases {
            let headers = pairs
                .iter()
                .map(|(name, value)| {
                    (
                        name.parse().expect("a name"),
                        value.parse().expect("a value"),
                    )
                })
                .collect();
            assert_eq!(
                retry_after(&headers),
                expected.map(Duration::from_millis),
                "{pairs:?}"
            );
        }
        assert_eq!(
            said_delay("Rate limit is exceeded. Try again in 2 seconds."),
            Some(Duration::from_secs(2))
        );
        assert_eq!(
            said_delay("Please retry after 86400 seconds. Please contact"),
            Some(Duration::from_secs(86400))
        );
        assert_eq!(said_delay("Try again in a while"), None);
    }
}
