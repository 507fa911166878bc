//! The text of a body: what it is made of, before its shape.
//!
//! Must hold: pure; words are bounded, have no control characters and nothing of a page.

use std::borrow::Cow;

use serde_json::Value;

use crate::{error::ErrorBody, json};

/// The longest plain text that is passed on, in bytes.
pub(super) const MAX_TEXT: usize = 2 << 10;

/// The text behind a byte-order mark, which RFC 8259 (8.1) lets parsers ignore.
pub(crate) fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text)
}

/// Whether the body is a page for people.
pub(in crate::upstream) fn is_page(text: &[u8], content_type: &str) -> bool {
    let begins = without_mark(text).trim_ascii_start();
    content_type.to_ascii_lowercase().contains("html") || begins.starts_with(b"<")
}

/// The document that a body is, also one in Latin-1; of several, each in its line, the first.
pub(super) fn document(text: &[u8]) -> Option<Value> {
    let text: Cow<'_, str> = match std::str::from_utf8(text) {
        Ok(text) => text.into(),
        Err(_) => text.iter().map(|byte| char::from(*byte)).collect(),
    };
    serde_json::from_str(&text).ok().or_else(|| {
        let (first, _) = text.split_once('\n')?;
        serde_json::from_str(first).ok().filter(Value::is_object)
    })
}

/// The data of the first event, if the body is an event stream.
pub(super) fn data_of_event(text: &[u8]) -> Option<Vec<u8>> {
    const FIELDS: [&[u8]; 4] = [b"event:", b"data:", b"id:", b"retry:"];
    let begins = |field: &&[u8]| text.starts_with(field);
    if !FIELDS.iter().any(begins) {
        return None;
    }
    let mut data = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        if let Some(part) = line.strip_prefix(b"data:") {
            data.extend_from_slice(part.trim_ascii());
            data.push(b'\n');
        } else if line.trim_ascii().is_empty() && !data.is_empty() {
            break;
        }
    }
    (!data.is_empty()).then(|| data.trim_ascii().to_vec())
}

/// Whether a TLS port says that it was spoken to in the clear. Only a server's own words: a service
/// may repeat those of a request.
pub(super) fn wants_tls(text: &[u8], content_type: &str) -> bool {
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

/// Whether a body is JSON that broke off.
pub(super) fn is_cut_json(text: &[u8]) -> bool {
    looks_like_json(text) && !json::is_whole(text)
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
pub(super) fn plain(text: &[u8], content_type: &str) -> Option<ErrorBody> {
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
    let message: String = without_page(text.ok()?).chars().map(clean).collect();
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    (!message.is_empty()).then(|| ErrorBody {
        message,
        ..ErrorBody::default()
    })
}

/// Words up to the page that they embed, if they do.
pub(super) fn without_page(words: &str) -> &str {
    const TAGS: [&str; 7] = [
        "<!doctype",
        "<html",
        "<head",
        "<body",
        "<center",
        "<title",
        "<h1",
    ];
    if !words.contains('<') {
        return words;
    }
    let lower = words.to_ascii_lowercase();
    match TAGS.iter().filter_map(|tag| lower.find(tag)).min() {
        Some(at) => words[..at].trim_end_matches(|letter: char| !letter.is_alphanumeric()),
        None => words,
    }
}
