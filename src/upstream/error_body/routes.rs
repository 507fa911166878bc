//! A route that is missing, told from a resource that is not there.
//!
//! Must hold: pure. An error with a name of the service's own for what is not there is the
//! service's, however general its words are.

use super::statuses::letters;
use crate::error::ErrorBody;

/// Words that are a framework's or an edge's own, as a whole. Services say some of them too.
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

/// What begins words about a route.
const BEGINNINGS: [&str; 20] = [
    "cannot get /",
    "cannot post /",
    "cannot delete /",
    "get /",
    "post /",
    "delete /",
    "not found: /",
    "not found: get ",
    "not found: post ",
    "route get:",
    "route post:",
    "route delete:",
    "route /",
    "no matching ",
    "no route ",
    "no handler found for",
    "no static resource ",
    "no resource found",
    "invalid url (",
    "the requested url was not found",
];

/// What a route is called, and what stands before that which is unknown or after that which is not
/// found.
const NOUNS: [&str; 5] = ["url", "uri", "path", "endpoint", "route"];
const BEFORE: [&str; 5] = [
    "unknown ",
    "unrecognized ",
    "unsupported ",
    "no such ",
    "no ",
];
const AFTER: [&str; 5] = [
    "not found",
    "does not exist",
    "doesn't exist",
    "not exist",
    "unknown",
];
const ADJECTIVES: [&str; 5] = ["the ", "requested ", "request ", "api ", "http "];

/// Whether what answered is a server without such a route, by what it says with a 404.
pub(super) fn is_missing(error: &ErrorBody) -> bool {
    // Of a problem's type (RFC 9457), which is a URL, the end.
    let own = |name: &String| letters(name.rsplit(['/', '#', ':']).next().unwrap_or_default());
    let names = [&error.code, &error.r#type].map(own);
    let is_of_route = |name: &String| {
        let is_unknown = || {
            ["notfound", "unknown", "nosuch"]
                .iter()
                .any(|it| name.contains(it))
        };
        NOUNS.iter().any(|noun| name.contains(noun)) && is_unknown()
    };
    if names.iter().any(is_of_route) || is_about_route(&error.message) {
        return true;
    }
    let is_resource = |name: &String| ["notfound", "nosuch"].iter().any(|it| name.contains(it));
    !names.iter().any(is_resource) && is_general(&error.message)
}

/// Words that say nothing of what is not there.
fn is_general(message: &str) -> bool {
    // Django's words for a resource that is not there; for a route it has a page.
    message != "Not found." && WHOLE.contains(&&*plain(message))
}

fn is_about_route(message: &str) -> bool {
    let message = plain(message);
    if BEGINNINGS.iter().any(|words| message.starts_with(words)) {
        return true;
    }
    let (words, is_unknown) = match BEFORE.iter().find_map(|it| message.strip_prefix(it)) {
        Some(rest) => (rest, true),
        None => (&*message, false),
    };
    let words = ADJECTIVES
        .iter()
        .fold(words, |words, it| words.strip_prefix(it).unwrap_or(words));
    let after = NOUNS.iter().find_map(|noun| words.strip_prefix(noun));
    let Some(after) = after.filter(|it| !it.starts_with(char::is_alphanumeric)) else {
        return false;
    };
    // A path in words about something else: `path 'metadata.x' does not exist`.
    let names_route = || after.contains('/') || after.len() < 30 && is_about_nothing(after);
    is_unknown || AFTER.iter().any(|it| after.contains(it)) && names_route()
}

/// Whether it follows at once that the route is not found, without its name.
fn is_about_nothing(after: &str) -> bool {
    let after = after.trim_start();
    let after = after.strip_prefix("was ").unwrap_or(after);
    AFTER.iter().any(|it| after.starts_with(it))
}

fn plain(message: &str) -> String {
    let message = message.trim().trim_end_matches(['.', '!']);
    message.to_ascii_lowercase()
}
