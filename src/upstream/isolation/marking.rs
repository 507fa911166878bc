//! What a request makes or changes, and how that is marked.

use http::Method;

use super::{Isolation, Kind};
use crate::{
    error::Error,
    json,
    upstream::{caller_mark::CallerMark, marks, request::Request, target},
};

/// What becomes of a resource by a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It is made.
    New,
    /// It is a thread that is made with a run.
    NewThreadOfRun,
    /// It was there.
    Old,
}

/// The body with the mark in its metadata, or the field that stands against it. Metadata that a
/// change does not name stay as they are.
pub(super) fn put_mark(body: &[u8], change: Change, mark: &CallerMark) -> Result<String, Error> {
    match change {
        Change::New => marks::put(body, true, marks::CALLER, mark.as_str()),
        Change::Old => marks::put(body, false, marks::CALLER, mark.as_str()),
        Change::NewThreadOfRun => {
            let member = marks::split(body, "thread")?;
            let thread = member.value.filter(|value| *value != "null");
            let thread = thread.unwrap_or("{}").as_bytes();
            let thread = marks::put(thread, true, marks::CALLER, mark.as_str());
            Ok(member.with("thread", &thread.map_err(|error| error.within("thread"))?))
        }
    }
}

impl Isolation {
    /// What this request makes or changes, and may mark.
    pub(super) fn changes(&self, request: &Request) -> Option<(Kind, Change)> {
        if request.method != Method::POST {
            return None;
        }
        let route = request.target.route;
        if route == "/threads/runs" {
            return Some((Kind::Thread, Change::NewThreadOfRun));
        }
        self.kinds().find_map(|kind| {
            let (_, one, all) = kind.names();
            let change = if route == all {
                Change::New
            } else if route == one {
                Change::Old
            } else {
                return None;
            };
            Some((kind, change))
        })
    }

    /// The assistant that a run is to be made with, as a segment of a path.
    pub(super) fn assistant_of_run(&self, request: &Request) -> Result<Option<String>, Error> {
        let makes_run = request.method == Method::POST
            && ["/threads/{thread_id}/runs", "/threads/runs"].contains(&request.target.route);
        let Some(body) = request.body.as_deref().filter(|_| makes_run) else {
            return Ok(None);
        };
        if !self.rules.assistants {
            return Ok(None);
        }
        let field = |name: &str| format!("{}.{name}", request.body_field);
        let member = json::split_member(body, "assistant_id").map_err(|error| {
            Error::invalid(request.body_field, format!("is not an object ({error})"))
        })?;
        if member.is_ambiguous {
            return Err(Error::invalid(
                field("extra_json"),
                "must name the assistant once only",
            ));
        }
        let Some(value) = member.value.filter(|value| *value != "null") else {
            return Ok(None);
        };
        let id = json::text_member(body, "assistant_id").filter(|_| value.starts_with('"'));
        let id = id.ok_or_else(|| Error::invalid(field("assistant_id"), "is not an id"))?;
        let target = target::target("/assistants/{assistant_id}", &[("assistant_id", &id)]);
        let target = target.map_err(|error| error.within(request.body_field))?;
        Ok(Some(target.id("assistant_id").to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::MarkKey;

    #[test]
    fn what_a_request_makes_is_marked() {
        let mark = MarkKey::new(&[7; 32]).mark("a");
        let pair = format!("\"runs_gateway_caller\":\"{}\"", mark.as_str());
        let cases = [
            ("{}", Change::New, format!("{{\"metadata\":{{{pair}}}}}")),
            ("{}", Change::Old, "{}".to_owned()),
            (
                r#"{"metadata":{"of":"the run"}}"#,
                Change::NewThreadOfRun,
                format!(
                    "{{\"metadata\":{{\"of\":\"the run\"}},\"thread\":{{\"metadata\":{{{pair}}}}}}}"
                ),
            ),
        ];
        for (body, change, expected) in cases {
            let marked = put_mark(body.as_bytes(), change, &mark).expect(body);
            assert_eq!(marked, expected);
        }
    }
}
