//! From an HTTP answer to a message or an [`Error`].
//!
//! Must hold: tolerance is not success. An answer of 200 is the resource that was asked for, with
//! an id, or it is an error; and no more of an answer is held in memory than the limit allows.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use tokio::time::{Instant, timeout_at};

use super::{
    answerable::Answerable,
    delay,
    error_body::{self, Said},
    failure, marks,
    own_secrets::OwnSecrets,
    packing::{self, Packing},
    target::Target,
};
use crate::{
    error::{ANOTHER_RESOURCE, Delivery, Error, Idempotency, Rejection},
    json,
    shares::{HeldBytes, HeldPart, Limit},
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

/// As much of an error's body as is read, in bytes. Some frameworks repeat the request in it.
const MAX_ERROR_BYTES: usize = 1 << 20;

/// As long as an error's body is waited for: the status is there, and says most.
const MAX_ERROR_TIME: Duration = Duration::from_secs(10);

/// What is left of a call's time when an error's body is waited for no more.
const ERROR_MARGIN: Duration = Duration::from_millis(100);

/// A body that does not say its length is read into a buffer with room for a quarter more than has
/// come: doubling it would take twice what it holds.
const GROWTH: usize = 4;

/// What the upstream gave.
#[derive(Debug)]
pub struct Answer<M> {
    /// The resource.
    pub message: Box<M>,
    /// Headers that the caller may see.
    pub headers: HeaderMap,
}

/// How an answer is read.
pub(super) struct Reading<'a> {
    /// What was asked for.
    pub(super) target: &'a Target,
    pub(super) idempotency: Idempotency,
    /// Whether the credential was the gateway's own.
    pub(super) own_key: bool,
    pub(super) secrets: &'a OwnSecrets,
    /// Nothing was written. What a write gives is taken whatever it says to belong to: it was done.
    pub(super) is_read: bool,
    /// Marks are shown. Otherwise they are taken out.
    pub(super) shows_marks: bool,
    /// The largest answer, in bytes.
    pub(super) limit: usize,
    /// What counts the bytes of answers.
    pub(super) held: &'a HeldBytes,
    /// When the call has to be over.
    pub(super) until: Instant,
}

/// Reads an answer to its end. What was read of its body before is `begun`.
pub(super) async fn read<M: Answerable>(
    response: &mut reqwest::Response,
    begun: Bytes,
    reading: &Reading<'_>,
) -> Result<Answer<M>, Error> {
    let headers = shown(response.headers());
    let mut held = reading.held.part();
    let text = read_text(response, begun, reading, &mut held).await?;
    let text = error_body::without_mark(&text);
    let unmarked;
    let text = if reading.shows_marks || !marks::may_be_in(text) {
        text
    } else {
        unmarked = marks::hidden(text);
        &unmarked
    };
    let decoded = json::decode_boxed(text);
    let is_whole = |message: &M| message.is_whole(text);
    // Some services say what went wrong with status 200.
    if !decoded.as_deref().is_ok_and(is_whole) && error_body::is_error(text) {
        let said = error_body::read(text, "");
        let status = error_body::status_of(&said);
        return Err(rejected(response.headers(), reading, headers, status, said));
    }
    let message: Box<M> = decoded.map_err(|error| {
        unusable(if error_body::is_page(text, content_type(response)) {
            "a page (HTML): is --upstream-url the base of its API?".to_owned()
        } else {
            error.to_string()
        })
    })?;
    if !message.is_whole(text) {
        Err(unusable("JSON of another shape".to_owned()))
    } else if !message.is_of(reading.target)
        || reading.is_read && !message.is_within(reading.target)
    {
        Err(unusable(ANOTHER_RESOURCE.to_owned()))
    } else {
        reading.held.keep(held);
        Ok(Answer { message, headers })
    }
}

/// Reads the body of an answer that is no error, which is held as `held`.
pub(super) async fn read_text(
    response: &mut reqwest::Response,
    begun: Bytes,
    reading: &Reading<'_>,
    held: &mut HeldPart,
) -> Result<Bytes, Error> {
    if !response.status().is_success() {
        let headers = shown(response.headers());
        return Err(Box::pin(rejection(response, reading, headers)).await);
    }
    check_encoding(response)?;
    let limit = reading.limit;
    body(response, begun, limit, held)
        .await
        .map_err(|unread| match unread {
            Unread::TooLarge => unusable(format!("more than {limit} bytes")),
            Unread::NoRoom(room) => no_room(room, reading.idempotency),
            Unread::Cut(error) => failure::cut(&error, reading.idempotency),
        })
}

/// Refuses a body that is packed: the request has said that it must not be.
pub(super) fn check_encoding(response: &reqwest::Response) -> Result<(), Error> {
    match packing::of(response.headers()) {
        Packing::None => Ok(()),
        Packing::Gzip | Packing::Other => {
            Err(unusable("an encoding that was not asked for".to_owned()))
        }
    }
}

pub(super) fn content_type(response: &reqwest::Response) -> &str {
    let value = response.headers().get(header::CONTENT_TYPE);
    value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
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

/// Why a body was not read.
enum Unread {
    /// It has more bytes than it may have.
    TooLarge,
    /// There is no room for it.
    NoRoom(Limit),
    /// It broke off.
    Cut(reqwest::Error),
}

/// An answer for which there is no room. What it would have said of a write, nobody knows.
fn no_room(limit: Limit, idempotency: Idempotency) -> Error {
    match idempotency {
        Idempotency::Idempotent => limit.into(),
        Idempotency::NonIdempotent => Error::Lost {
            delivery: Delivery::Unknown,
            idempotency,
            cause: "there was no room for the answer (--max-held-bytes)".to_owned(),
            timed_out: false,
            mendable: false,
            request_id: None,
        },
    }
}

/// Reads a body that has `begun` up to `limit` bytes. `held` is what it takes: what it is read from,
/// which is what it is decoded to later, and what it is read to.
async fn body(
    response: &mut reqwest::Response,
    begun: Bytes,
    limit: usize,
    held: &mut HeldPart,
) -> Result<Bytes, Unread> {
    let said = response.content_length().unwrap_or_default();
    let said = begun.len() + usize::try_from(said).unwrap_or(usize::MAX);
    if said > limit {
        return Err(Unread::TooLarge);
    }
    let mut text = Vec::new();
    let mut first = begun;
    while let Some(chunk) = response.chunk().await.map_err(Unread::Cut)? {
        let read = first.len() + text.len();
        let length = read + chunk.len();
        if length > limit {
            return Err(Unread::TooLarge);
        }
        // Most bodies come in one piece, which is not copied.
        if read == 0 {
            held.resize(2 * said.max(length)).map_err(Unread::NoRoom)?;
            first = chunk;
            continue;
        }
        if length > text.capacity() {
            let room = said.max(length + length / GROWTH);
            held.resize(room + said.max(length))
                .map_err(Unread::NoRoom)?;
            text.reserve_exact(room - text.len());
        }
        text.extend_from_slice(&std::mem::take(&mut first));
        text.extend_from_slice(&chunk);
    }
    Ok(if text.is_empty() { first } else { text.into() })
}

async fn rejection(
    response: &mut reqwest::Response,
    reading: &Reading<'_>,
    shown: HeaderMap,
) -> Error {
    // The status is known whatever becomes of the body: one that is cut, packed in a way that is not
    // known, too large or too slow says less, not nothing, and not that there is no such route.
    let until = (Instant::now() + MAX_ERROR_TIME).min(reading.until - ERROR_MARGIN);
    let mut held = reading.held.part();
    let body = body(response, Bytes::new(), MAX_ERROR_BYTES, &mut held);
    let said = match timeout_at(until, body).await {
        Ok(Ok(text)) => match packing::unpacked(text, response.headers(), MAX_ERROR_BYTES) {
            Some(text) => error_body::read(&text, content_type(response)),
            None => Said::default(),
        },
        Ok(Err(_)) | Err(_) => Said::default(),
    };
    if said.wants_tls {
        return failure::wants_tls(reading.idempotency);
    }
    let status = response.status().as_u16();
    rejected(response.headers(), reading, shown, status, said)
}

/// The error that an answer with these headers, of which callers see those that are `shown`, says.
fn rejected(
    headers: &HeaderMap,
    reading: &Reading<'_>,
    shown: HeaderMap,
    status: u16,
    mut said: Said,
) -> Error {
    if let Some(error) = &mut said.error {
        reading.secrets.hide(error);
        if !reading.shows_marks {
            marks::hide(error);
        }
    }
    let should_retry = match headers.get("x-should-retry").map(HeaderValue::as_bytes) {
        Some(b"true") => Some(true),
        Some(b"false") => Some(false),
        _ => None,
    };
    Error::Rejected(Box::new(Rejection {
        status,
        retry_after: delay::from_headers(headers).or_else(|| delay_in_body(status, &said)),
        should_retry,
        request_id: request_id(&shown).map(str::to_owned).or(said.request_id),
        missing_route: said.missing_route,
        body: said.error,
        idempotency: reading.idempotency,
        own_key: reading.own_key,
        headers: shown,
    }))
}

/// How long an error's body asks to wait, where waiting may help. Words of other errors repeat what
/// the caller wrote.
fn delay_in_body(status: u16, said: &Said) -> Option<Duration> {
    let in_words = || delay::from_words(&said.error.as_ref()?.message);
    match status {
        408 | 425 | 429 | 500.. => said.retry_after.or_else(in_words),
        _ => None,
    }
}

/// The error that an `error` event stands for. It ends a stream that began with a write, which may
/// have taken effect. `own_key`: the credential was the gateway's own, of which the words may hold a
/// part.
pub fn error_event(data: &[u8], own_key: bool) -> Error {
    let said = error_body::read(data, "");
    let status = error_body::status_of(&said);
    Error::Rejected(Box::new(Rejection {
        status,
        retry_after: delay_in_body(status, &said),
        should_retry: None,
        request_id: said.request_id,
        missing_route: false,
        body: said.error,
        idempotency: Idempotency::NonIdempotent,
        own_key,
        headers: HeaderMap::new(),
    }))
}

/// The headers that callers may see.
pub(super) fn shown(headers: &HeaderMap) -> HeaderMap {
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
