//! One error, and the only mapping from errors to gRPC status.
//!
//! The table, from what happened to what a caller is told, is `Error::verdict` (`verdict.rs`). Behind
//! it stand three ideas:
//!
//! - **Meshes repeat UNAVAILABLE.** It is said only where repeating is harmless: the request was
//!   never sent or was refused, or doing it twice is the same as doing it once. A create or a
//!   submit whose fate is not known is UNKNOWN, reason `OUTCOME_UNKNOWN`, with a pushback of -1.
//! - **An error tells what to do next**: the field to mend (`BadRequest`), the time to wait
//!   (`RetryInfo`, `grpc-retry-pushback-ms`), whom to ask (`RequestInfo`), and one reason of a
//!   documented set (`ErrorInfo`, `proto/runsgateway/v1/error_reason.proto`).
//! - **What the caller is told and what the log is told are two texts.** The caller gets the
//!   upstream's message. The log ([`Error::log`]) gets codes, ids and causes, never a message, a
//!   body, a URL or a key. Of an error about the gateway's own key it is the other way round: the
//!   caller can do nothing about it, and the log has the message with all masked that may be a key.
//!
//! Must hold: status and details together take at most 4 KiB, since clients bound the metadata they
//! accept (grpc-java: 8 KiB).

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use crate::{json::Violation, shares::Limit};

mod log;
mod masked;
mod rejection;
mod resume;
mod status;
mod text;
mod verdict;
mod words;

pub use rejection::{ErrorBody, FieldError, Rejection};
pub use resume::Resume;
pub use status::{DOMAIN, with_reason};
use verdict::DEFAULT_RETRY_DELAY;

/// What an answer about something else is. It will not be another the next time.
pub(crate) const ANOTHER_RESOURCE: &str = "another resource than the one asked for";

/// What doing an upstream request twice would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idempotency {
    /// The same as doing it once: reads, changes, deletions, `CancelRun`.
    Idempotent,
    /// Harm: creates and submits.
    NonIdempotent,
}

/// How far a request got that has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Not a byte of it was sent.
    Unsent,
    /// The upstream said that it did not process it.
    Refused,
    /// It may or may not have been processed.
    Unknown,
}

/// Everything that can go wrong with a call.
#[derive(Debug)]
pub enum Error {
    /// A field of the request is wrong. No upstream call was made.
    Invalid {
        /// The field's path in the request, such as `run.tools[0].type`.
        field: String,
        /// What is wrong, in words for the caller.
        description: String,
    },
    /// The upstream answered with an error.
    Rejected(Box<Rejection>),
    /// There is no answer, or not all of it.
    Lost {
        /// How far the request got.
        delivery: Delivery,
        /// What repeating it would do.
        idempotency: Idempotency,
        /// Why, in words that hold no secret and no address of the upstream.
        cause: String,
        /// The upstream was silent for longer than the gateway waits.
        timed_out: bool,
        /// Whoever runs the gateway has to mend it: calling again cannot help.
        mendable: bool,
        /// The upstream's id of the request, if the answer came so far.
        request_id: Option<String>,
    },
    /// The upstream answered 2xx with something else than was asked for.
    Unusable {
        /// What is wrong, in words that hold nothing of the answer.
        what: String,
        /// The upstream's id of the request.
        request_id: Option<String>,
    },
    /// Not all of a list of the upstream's is read, now or later.
    ListUnread {
        /// Of what, with the limit and its flag.
        what: String,
    },
    /// A message, or the metadata, has more than it may have.
    TooLarge {
        /// Of what, with the limit and its flag.
        what: String,
    },
    /// The call breaks the protocol. No handler saw it.
    Malformed {
        /// What is wrong.
        what: Cow<'static, str>,
    },
    /// The messages of the request are packed in a way that is not known here.
    UnknownEncoding,
    /// The caller's deadline passed.
    DeadlineExceeded,
    /// The first message of a call did not come in time.
    MessageTimeout {
        /// The limit.
        limit: Duration,
    },
    /// An answer was ended because nobody read it and others need the room.
    Unread,
    /// The gateway does not know the caller.
    NotAdmitted {
        /// Why, or what to show, in words that hold nothing of what was shown.
        what: &'static str,
    },
    /// The gateway is shutting down, or the connection or the call has reached its age.
    Draining,
    /// The gateway has as much of something as it may have.
    Overloaded(Limit),
    /// A conversation's caller closed its side while the run waits for these outputs.
    OutputsMissing {
        /// The calls' ids.
        ids: Vec<String>,
    },
    /// A conversation's caller sent more outputs than are held for it.
    OutputsTooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The `request_id` was used for another request.
    RequestIdUsed,
    /// A create may or may not have been done. It was looked for and not found; a repeat looks
    /// again before it creates.
    Unsettled {
        /// Why it is not known.
        error: Arc<Error>,
    },
    /// The thread's active run was waited for in vain.
    ThreadBusy {
        /// The thread.
        thread_id: String,
        /// The run.
        run_id: String,
        /// What became of the wait, with the limit and its flag.
        why: String,
    },
    /// A stream ended before its run did.
    Interrupted {
        /// Why.
        error: Arc<Error>,
        /// How to go on.
        resume: Resume,
    },
}

impl Error {
    /// A field that is wrong.
    pub fn invalid(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            description: description.into(),
        }
    }

    /// The same error, of a request that has this id at the upstream.
    #[must_use]
    pub fn of_request(mut self, id: Option<String>) -> Self {
        if let Self::Lost { request_id, .. } | Self::Unusable { request_id, .. } = &mut self {
            *request_id = id;
        }
        self
    }

    /// The same error in a request that holds the wrong field's message as `parent`.
    #[must_use]
    pub fn within(self, parent: &str) -> Self {
        match self {
            Self::Invalid { field, description } => Self::Invalid {
                field: format!("{parent}.{field}"),
                description,
            },
            other => other,
        }
    }

    /// Whether the same call may succeed later without anybody doing something about it.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Rejected(rejection) => {
                let may_pass = matches!(rejection.status, 408 | 409 | 425 | 429 | 500 | 502..);
                may_pass && !rejection.is_quota()
            }
            Self::Unusable { what, .. } => what != ANOTHER_RESOURCE,
            Self::Lost { .. } | Self::Overloaded(_) | Self::Draining | Self::Unread => true,
            Self::Interrupted { error, .. } | Self::Unsettled { error } => error.is_transient(),
            Self::RequestIdUsed
            | Self::ThreadBusy { .. }
            | Self::Invalid { .. }
            | Self::ListUnread { .. }
            | Self::TooLarge { .. }
            | Self::Malformed { .. }
            | Self::UnknownEncoding
            | Self::NotAdmitted { .. }
            | Self::DeadlineExceeded
            | Self::MessageTimeout { .. }
            | Self::OutputsMissing { .. }
            | Self::OutputsTooLarge { .. } => false,
        }
    }

    /// Whether a write that failed so may be due now, or may have been done: reading the resource
    /// tells.
    pub fn is_unsettled(&self) -> bool {
        match self {
            Self::Rejected(rejection) => self.is_transient() || rejection.is_state_conflict(),
            Self::Lost { .. } | Self::Unusable { .. } => true,
            _ => false,
        }
    }

    /// Whether a create or a submit that failed so may have taken effect nevertheless.
    pub fn outcome_unknown(&self) -> bool {
        let idempotency = match self {
            Self::Lost { idempotency, .. } => *idempotency,
            Self::Rejected(rejection) => rejection.idempotency,
            _ => return false,
        };
        idempotency == Idempotency::NonIdempotent && self.may_have_taken_effect()
    }

    /// Whether the upstream may have done what was asked, harmless to repeat or not.
    pub fn may_have_taken_effect(&self) -> bool {
        match self {
            Self::Lost { delivery, .. } => *delivery == Delivery::Unknown,
            Self::Rejected(rejection) => matches!(rejection.status, 408 | 500 | 502..),
            _ => false,
        }
    }

    /// Whether the upstream has no such resource. A 404 of a server that has no such route says
    /// nothing about the resource.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Rejected(rejection) if rejection.status == 404 && !rejection.missing_route)
    }

    /// Whether it is not the request that is wrong, but the state of the thread or run.
    pub fn is_state_conflict(&self) -> bool {
        matches!(self, Self::Rejected(rejection) if rejection.is_state_conflict())
    }

    /// Whether it is an active run of the thread that is in the way.
    pub fn is_active_run(&self) -> bool {
        matches!(self, Self::Rejected(rejection) if rejection.is_active_run())
    }

    /// The run that the upstream's words name.
    pub fn named_run(&self) -> Option<&str> {
        match self {
            Self::Rejected(rejection) => rejection.named_run(),
            _ => None,
        }
    }

    /// Whether the upstream does not know the credential.
    pub fn is_credential_rejected(&self) -> bool {
        matches!(self, Self::Rejected(rejection) if rejection.refuses_key())
    }

    /// How long the upstream asks to wait before the next request.
    pub fn retry_delay(&self) -> Option<Duration> {
        match self {
            Self::Rejected(rejection) if rejection.status == 429 => {
                Some(rejection.retry_after.unwrap_or(DEFAULT_RETRY_DELAY))
            }
            Self::Rejected(rejection) => rejection.retry_after,
            _ => None,
        }
    }

    /// What there is too much of, if that is the error.
    pub fn overloaded(&self) -> Option<&'static str> {
        match self {
            Self::Overloaded(limit) => Some(limit.what),
            Self::Interrupted { error, .. } => error.overloaded(),
            _ => None,
        }
    }

    /// What a log may say of it.
    pub fn log(&self) -> impl fmt::Display + '_ {
        log::Log(self)
    }
}

impl From<Limit> for Error {
    fn from(limit: Limit) -> Self {
        Self::Overloaded(limit)
    }
}

impl From<Violation> for Error {
    fn from(violation: Violation) -> Self {
        Self::Invalid {
            field: violation.field,
            description: violation.description,
        }
    }
}
