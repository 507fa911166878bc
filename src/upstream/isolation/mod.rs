//! Callers that must not see each other: a thread belongs to the caller that made it.
//!
//! A thread that is made through the gateway is marked in its metadata (`marks.rs`) with a keyed
//! hash of its caller's name. Before any other request on a thread its mark is read.
//!
//! Must hold:
//!
//! - **No request passes by.** [`Allowed`] is the only thing that can be sent, and this file the
//!   only one that makes it.
//! - What is another caller's, what is nobody's ([`Unmarked::Deny`]) and what does not exist is one
//!   error, made in one place ([`not_found`]), after the same work: one read, which is remembered
//!   for a second. So neither bytes nor time tell them apart.
//! - What is remembered is bounded in number and age, and is one caller's: that somebody else uses
//!   a thread changes nothing for who asks.
//! - After a deletion nothing of what was read before it is remembered.

mod assistants;
mod check;
mod marking;
mod memory;

use std::{ops::Deref, sync::Mutex, time::Duration};

use clap::ValueEnum;
use http::{HeaderMap, Method};

use self::memory::{Memory, Verdict, lock};
use super::{
    caller_mark::{CallerMark, MarkKey},
    request::Request,
};
use crate::error::{Error, ErrorBody, Idempotency, Rejection};

/// What a caller without a name is told.
const NAMELESS: &str =
    "its certificate has no name, and callers are told apart by their names (--isolate-callers)";

/// Who may use what nobody is marked to have made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Unmarked {
    /// All callers.
    Allow,
    /// Nobody: it is as if it were not there.
    Deny,
}

/// How callers are isolated from each other.
#[derive(Debug, Clone)]
pub struct IsolationRules {
    /// The secret of the marks, the same on all replicas.
    pub key: MarkKey,
    /// Who may use what has no mark.
    pub unmarked: Unmarked,
    /// Assistants are isolated, too.
    pub assistants: bool,
    /// The most threads that are remembered to be their callers'. As many again are remembered
    /// not to be.
    pub max_remembered: usize,
    /// How long it is remembered that a thread is its caller's.
    pub max_age: Duration,
}

/// A request that its caller may make.
pub(super) struct Allowed(Request);

impl Deref for Allowed {
    type Target = Request;

    fn deref(&self) -> &Request {
        &self.0
    }
}

/// What belongs to a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Thread,
    Assistant,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Thread, Self::Assistant];

    /// The name of its id in routes, where one is, and where one is made.
    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Thread => ("thread_id", "/threads/{thread_id}", "/threads"),
            Self::Assistant => ("assistant_id", "/assistants/{assistant_id}", "/assistants"),
        }
    }

    /// Where it is at the upstream. `segment` is its id as it stands in a path.
    fn path(self, segment: &str) -> String {
        [self.names().2, "/", segment].concat()
    }
}

/// The error of what is not there for a caller, whatever the reason: as `OpenAI` says it of a
/// thread that does not exist.
fn not_found(kind: Kind, id: &str) -> Error {
    let noun = match kind {
        Kind::Thread => "thread",
        Kind::Assistant => "assistant",
    };
    Error::Rejected(Box::new(Rejection {
        status: 404,
        body: Some(ErrorBody {
            message: format!("No {noun} found with id '{id}'."),
            r#type: "invalid_request_error".to_owned(),
            ..ErrorBody::default()
        }),
        missing_route: false,
        request_id: None,
        retry_after: None,
        should_retry: None,
        idempotency: Idempotency::Idempotent,
        own_key: true,
        headers: HeaderMap::new(),
    }))
}

/// Which callers may use what.
#[derive(Debug)]
pub(super) struct Isolation {
    rules: IsolationRules,
    memory: Mutex<Memory>,
}

impl Isolation {
    pub(super) fn new(rules: IsolationRules) -> Self {
        let memory = Mutex::new(Memory::new(rules.max_remembered));
        Self { rules, memory }
    }

    pub(super) fn mark(&self, name: &str) -> Option<CallerMark> {
        (!name.is_empty()).then(|| self.rules.key.mark(name))
    }

    /// The kinds that belong to callers.
    fn kinds(&self) -> impl Iterator<Item = Kind> + use<> {
        let assistants = self.rules.assistants;
        Kind::ALL
            .into_iter()
            .filter(move |kind| *kind == Kind::Thread || assistants)
    }

    fn judge(&self, mark: &CallerMark, found: Option<&str>) -> Verdict {
        match (found, self.rules.unmarked) {
            (Some(found), _) if found == mark.as_str() => Verdict::Own,
            (None, Unmarked::Allow) => Verdict::Shared,
            _ => Verdict::Denied,
        }
    }

    /// Forgets what a request deletes.
    fn forget_deleted(&self, request: &Request) {
        if request.method == Method::DELETE {
            for kind in Kind::ALL {
                if request.target.route == kind.names().1 {
                    lock(&self.memory).forget(&request.target.path);
                }
            }
        }
    }

    /// A caller's request was answered, or not. What it found gone is forgotten.
    pub(super) fn answered(&self, request: &Allowed, error: Option<&Error>) {
        if request.shows_marks {
            // What a read of a mark found is remembered by who reads it.
            return;
        }
        self.forget_deleted(request);
        if error.is_some_and(Error::is_not_found) {
            for kind in Kind::ALL {
                let segment = request.target.id(kind.names().0);
                if !segment.is_empty() {
                    lock(&self.memory).forget_allowed(&kind.path(segment));
                }
            }
        }
    }
}
