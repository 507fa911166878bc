//! Paths and queries.
//!
//! Must hold: nothing that a caller sends can change which endpoint is called. An id becomes
//! exactly one path segment, whatever it holds; one that no segment can stand for (empty, `.`,
//! `..`), or that would make the path another endpoint's (`/threads/runs` is no thread), is refused
//! with the field's name.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::Url;

use crate::{error::Error, v1::SortOrder};

include!(concat!(env!("OUT_DIR"), "/not_ids.rs"));

/// All but what RFC 3986 calls unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The longest page that can be asked for.
const MAX_LIMIT: i32 = 100;

/// The longest text of a caller's in a URL, in bytes as it stands there. All that one request can
/// have stay below what HTTP libraries and servers take for a URL, 64 KiB: what cannot be sent is
/// refused here, by name, and is not taken for an upstream that cannot be reached.
const MAX_TEXT: usize = 10 << 10;

/// Appends a caller's text, encoded so that it stands for itself and nothing else.
fn push(url: &mut String, field: &str, text: &str) -> Result<(), Error> {
    let before = url.len();
    url.extend(utf8_percent_encode(text, RESERVED));
    if url.len() - before > MAX_TEXT {
        Err(Error::invalid(field, "is too long for a URL"))
    } else {
        Ok(())
    }
}

/// An endpoint, and where it is for certain ids.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// Such as `/threads/{thread_id}/runs`.
    pub(super) route: &'static str,
    /// Such as `/threads/thread_1/runs`.
    pub(super) path: String,
}

/// Fills a route such as `/threads/{thread_id}/runs` with ids by name. An id that is not a segment
/// is an error that names its field.
pub(super) fn target(route: &'static str, ids: &[(&str, &str)]) -> Result<Target, Error> {
    let mut path = String::with_capacity(route.len() + 64);
    for segment in route.split('/').skip(1) {
        path.push('/');
        let Some(field) = segment
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'))
        else {
            path.push_str(segment);
            continue;
        };
        let id = ids.iter().find(|(name, _)| *name == field);
        match id.map_or("", |(_, id)| *id) {
            "" => return Err(Error::invalid(field, "must be set")),
            "." | ".." => return Err(Error::invalid(field, "is not an id")),
            id if NOT_IDS.contains(&(route, field, id)) => {
                return Err(Error::invalid(
                    field,
                    "is not an id: another endpoint has this name",
                ));
            }
            id => push(&mut path, field, id)?,
        }
    }
    Ok(Target { route, path })
}

impl Target {
    /// The segment of the path where the route has this name: empty if it has none.
    pub(super) fn id(&self, name: &str) -> &str {
        let mut segments = self.route.split('/').zip(self.path.split('/'));
        let named = segments.find_map(|(field, segment)| {
            let field = field.strip_prefix('{')?.strip_suffix('}')?;
            (field == name).then_some(segment)
        });
        named.unwrap_or_default()
    }

    /// Whether the path has this id where the route has this name. Without such a name, or an id,
    /// there is nothing to differ.
    pub(super) fn names(&self, name: &str, id: &str) -> bool {
        let segment = self.id(name);
        // An id seldom has anything to encode, and is then compared as it is.
        segment.is_empty()
            || id.is_empty()
            || Cow::from(utf8_percent_encode(id, RESERVED)) == segment
    }
}

/// The upstream's URL: what comes before a path and after it.
#[derive(Debug, Clone)]
pub(super) struct Base {
    before: Url,
    prefix: String,
    query: String,
}

impl Base {
    pub(super) fn new(url: &Url) -> Self {
        let prefix = url.path().trim_end_matches('/').to_owned();
        Self {
            before: url.clone(),
            prefix,
            query: url.query().unwrap_or_default().to_owned(),
        }
    }

    pub(super) fn url(&self, path: &str, query: &Query) -> Url {
        let mut url = self.before.clone();
        // Dots and escapes were dealt with in `path`: the parser that this goes through finds
        // nothing to change.
        url.set_path(&[&self.prefix, path].concat());
        let separator = if self.query.is_empty() || query.0.is_empty() {
            ""
        } else {
            "&"
        };
        let query = [&self.query, separator, &query.0].concat();
        url.set_query(Some(query.as_str()).filter(|query| !query.is_empty()));
        url
    }
}

/// The query of one request, encoded.
#[derive(Debug, Default)]
pub(super) struct Query(String);

impl Query {
    /// As it stands in a URL.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    fn pair(&mut self, name: &str, value: &str) -> Result<(), Error> {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        self.0.push_str(name);
        self.0.push('=');
        push(&mut self.0, name.trim_end_matches("[]"), value)
    }

    /// A list, as services expect it: once per value.
    pub(super) fn list(mut self, name: &str, values: &[String]) -> Result<Self, Error> {
        let before = self.0.len();
        for value in values {
            self.pair(&[name, "[]"].concat(), value)?;
            if self.0.len() - before > MAX_TEXT {
                return Err(Error::invalid(name, "is too long for a URL"));
            }
        }
        Ok(self)
    }

    /// An id or a word. An empty one is not set.
    pub(super) fn text(mut self, name: &str, value: &str) -> Result<Self, Error> {
        if !value.is_empty() {
            self.pair(name, value)?;
        }
        Ok(self)
    }

    /// The length of a page.
    pub(super) fn limit(mut self, limit: Option<i32>) -> Result<Self, Error> {
        if let Some(limit) = limit {
            if !(1..=MAX_LIMIT).contains(&limit) {
                return Err(Error::invalid("limit", format!("must be 1 to {MAX_LIMIT}")));
            }
            self.pair("limit", &limit.to_string())?;
        }
        Ok(self)
    }

    /// The order of a list.
    pub(super) fn order(mut self, order: i32) -> Result<Self, Error> {
        match SortOrder::try_from(order) {
            Ok(SortOrder::Unspecified) => {}
            Ok(SortOrder::Asc) => self.pair("order", "asc")?,
            Ok(SortOrder::Desc) => self.pair("order", "desc")?,
            Err(_) => {
                return Err(Error::invalid(
                    "order",
                    "is not a value that this contract names",
                ));
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_keeps_its_prefix_and_its_query() {
        let cases = [
            ("https://host", "https://host/threads/runs?limit=1"),
            ("https://host/", "https://host/threads/runs?limit=1"),
            (
                "https://host/openai/v1/",
                "https://host/openai/v1/threads/runs?limit=1",
            ),
            (
                "https://host/openai?api-version=1",
                "https://host/openai/threads/runs?api-version=1&limit=1",
            ),
        ];
        for (base, expected) in cases {
            let base = Base::new(&base.parse().expect("a URL"));
            let query = Query::default().limit(Some(1)).expect("a page");
            assert_eq!(base.url("/threads/runs", &query).as_str(), expected);
        }
    }

    #[test]
    fn an_id_is_one_segment_or_an_error() {
        let base = Base::new(&"http://h/p".parse().expect("a URL"));
        for id in [
            "a/b", "a?b", "a#b", "é", "%2e%2e", "a\\b", " ", "\u{0}", "..%2f", "a;b", "...", ".a",
        ] {
            let target =
                target("/threads/{thread_id}/runs", &[("thread_id", id)]).expect("a target");
            let url = base.url(&target.path, &Query::default());
            let segments: Vec<_> = url.path_segments().expect("segments").collect();
            assert_eq!(segments.len(), 4, "{id:?} became {url}");
            assert_eq!(
                (segments[0], segments[1], segments[3]),
                ("p", "threads", "runs")
            );
            let decoded = percent_encoding::percent_decode_str(segments[2])
                .decode_utf8()
                .expect("UTF-8");
            assert_eq!(decoded, id);
        }
        for id in ["", ".", ".."] {
            assert!(
                target("/threads/{thread_id}/runs", &[("thread_id", id)]).is_err(),
                "{id:?}"
            );
        }
        // `/threads/runs` is not that thread, but where all create threads with their runs.
        assert!(target("/threads/{thread_id}", &[("thread_id", "runs")]).is_err());
        assert!(target("/threads/{thread_id}/runs", &[("thread_id", "runs")]).is_ok());
    }
}
