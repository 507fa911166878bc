//! One error, and the only mapping from errors to gRPC status.
//!
//! The table, from what happened to what a caller is told, is `Error::verdict`. Behind it stand
//! three ideas:
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

use std::{borrow::Cow, collections::HashMap, fmt, sync::Arc, time::Duration};

use tonic::{Code, Status, metadata::MetadataMap};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    json::Violation,
    shares::Limit,
    v1::{ErrorReason, RunEventType},
};

mod masked;
mod rejection;
mod resume;
mod words;

pub use rejection::{ErrorBody, FieldError, Rejection};
pub use resume::Resume;

/// The domain of every `ErrorInfo`.
pub const DOMAIN: &str = "runsgateway.v1";

/// The longest text of an upstream that is passed on, in bytes after percent-encoding: it stands in
/// a status up to three times.
const MAX_MESSAGE: usize = 600;

/// The longest code, type, parameter name or request id of an upstream that is passed on, in bytes.
const MAX_WORD: usize = 128;

/// What an answer about something else is. It will not be another the next time.
pub(crate) const ANOTHER_RESOURCE: &str = "another resource than the one asked for";

/// What to do about a write of unknown outcome.
const LOOK: &str = "; look before doing it again";

/// How long to wait where the upstream asks to wait and does not say how long.
const DEFAULT_RETRY_DELAY: Duration = Duration::from_secs(1);

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
        Log(self)
    }

    /// The status that the caller gets, with its details.
    pub fn status(&self) -> Status {
        let Verdict {
            code,
            reason,
            message,
            retry,
        } = self.verdict();
        let message = cut(&message, MAX_MESSAGE);
        let mut details = ErrorDetails::new();
        let mut metadata = MetadataMap::new();
        let mut info = HashMap::new();
        let mut cause = self;
        while let Self::Interrupted { error, .. } | Self::Unsettled { error } = cause {
            if let Self::Interrupted { resume, .. } = cause {
                info.extend(resume.info());
            }
            cause = error;
        }
        match cause {
            Self::Invalid { field, description } => {
                details
                    .add_bad_request_violation(cut(field, MAX_WORD), cut(description, MAX_MESSAGE));
            }
            Self::Rejected(rejection) => {
                info.extend(rejection.info());
                if code == Code::InvalidArgument {
                    for (field, words) in rejection.blamed(&message) {
                        details.add_bad_request_violation(field, words);
                    }
                }
                if let Some(id) = &rejection.request_id {
                    details.set_request_info(cut(id, MAX_WORD), "");
                }
                if reason == ErrorReason::InsufficientQuota {
                    details.add_quota_failure_violation(
                        "upstream",
                        "the quota of the upstream's account is used up",
                    );
                }
                metadata = MetadataMap::from_headers(rejection.headers.clone());
            }
            Self::Lost {
                request_id: Some(id),
                ..
            }
            | Self::Unusable {
                request_id: Some(id),
                ..
            } => {
                details.set_request_info(cut(id, MAX_WORD), "");
            }
            Self::UnknownEncoding => {
                insert(&mut metadata, "grpc-accept-encoding", "identity,gzip");
            }
            Self::ThreadBusy {
                thread_id, run_id, ..
            } => {
                let ids = [("thread_id", thread_id), ("run_id", run_id)];
                info.extend(ids.map(|(name, id)| (name.to_owned(), cut(id, MAX_WORD))));
            }
            _ => {}
        }
        match retry {
            Retry::Unsaid => {}
            Retry::Never => insert(&mut metadata, "grpc-retry-pushback-ms", "-1"),
            Retry::After(delay) => {
                details.set_retry_info(Some(delay));
                insert(
                    &mut metadata,
                    "grpc-retry-pushback-ms",
                    &delay.as_millis().to_string(),
                );
            }
        }
        details.set_error_info(reason_name(reason), DOMAIN, info);
        Status::with_error_details_and_metadata(code, message, details, metadata)
    }

    /// What a call is told whose request no handler saw.
    fn unread_verdict(&self) -> Verdict {
        use ErrorReason as R;
        match self {
            Self::TooLarge { what } => {
                Verdict::new(Code::ResourceExhausted, R::RequestTooLarge, what.clone())
                    .retry(Retry::Never)
            }
            Self::Malformed { what } => Verdict::new(
                Code::Internal,
                R::MalformedRequest,
                what.clone().into_owned(),
            ),
            _ => Verdict::new(
                Code::Unimplemented,
                R::Unsupported,
                "grpc-encoding: only gzip and identity are understood".to_owned(),
            ),
        }
    }

    /// The table.
    fn verdict(&self) -> Verdict {
        use ErrorReason as R;
        let (again, again_later) = ("; call again", "; call again later");
        match self {
            Self::Invalid { field, description } => Verdict::new(
                Code::InvalidArgument,
                R::InvalidField,
                format!("{field}: {description}"),
            ),
            Self::Rejected(rejection) => rejection.verdict(),
            Self::Lost {
                delivery: Delivery::Unknown,
                idempotency: Idempotency::NonIdempotent,
                cause,
                ..
            } => Verdict::unknown(cause),
            Self::Lost {
                timed_out: true,
                cause,
                delivery: Delivery::Unknown,
                ..
            } => Verdict::new(Code::DeadlineExceeded, R::UpstreamTimeout, cause.clone()),
            Self::Lost {
                cause,
                mendable: true,
                ..
            } => Verdict::new(Code::Unavailable, R::UpstreamUnavailable, cause.clone()),
            Self::Lost { cause, .. } => Verdict::new(
                Code::Unavailable,
                R::UpstreamUnavailable,
                format!("{cause}{again}"),
            ),
            Self::Unusable { what, .. } | Self::ListUnread { what } => Verdict::new(
                Code::Internal,
                R::UnusableAnswer,
                format!("the upstream's answer cannot be used: {what}"),
            ),
            Self::TooLarge { .. } | Self::Malformed { .. } | Self::UnknownEncoding => {
                self.unread_verdict()
            }
            Self::DeadlineExceeded => {
                let message = "the deadline of the call passed; a create or a submit may have taken effect: look before doing it again";
                Verdict::new(
                    Code::DeadlineExceeded,
                    R::DeadlineExceeded,
                    message.to_owned(),
                )
            }
            Self::MessageTimeout { limit } => {
                let message =
                    format!("the call's message did not come within {limit:?} (--message-timeout)");
                Verdict::new(Code::DeadlineExceeded, R::DeadlineExceeded, message)
            }
            Self::Unread => {
                let message = format!(
                    "the answer was not read, and others need the room (--max-held-bytes){again_later}"
                );
                Verdict::new(Code::ResourceExhausted, R::GatewayOverloaded, message)
                    .retry(Retry::After(DEFAULT_RETRY_DELAY))
            }
            Self::NotAdmitted { what } => {
                let message = format!("the gateway does not know this caller: {what}");
                Verdict::new(Code::Unauthenticated, R::CallerNotAdmitted, message)
            }
            Self::Draining => Verdict::new(
                Code::Unavailable,
                R::GatewayDraining,
                format!("the gateway ends this call{again}"),
            ),
            Self::Overloaded(Limit { what, max, flag }) => {
                let message = format!("too many {what} (limit {max}, {flag}){again_later}");
                Verdict::new(Code::Unavailable, R::GatewayOverloaded, message)
                    .retry(Retry::After(DEFAULT_RETRY_DELAY))
            }
            Self::OutputsMissing { ids } => {
                let message = format!(
                    "the run waits for outputs or approvals of {}, and the caller has closed its side",
                    ids.join(", ")
                );
                Verdict::new(Code::FailedPrecondition, R::OutputsMissing, message)
            }
            Self::OutputsTooLarge { limit } => {
                let message = format!(
                    "tool outputs of more than {limit} bytes are held for this conversation"
                );
                Verdict::new(Code::ResourceExhausted, R::OutputsTooLarge, message)
                    .retry(Retry::Never)
            }
            Self::RequestIdUsed => Verdict::new(
                Code::AlreadyExists,
                R::RequestIdUsed,
                "request_id: it was used for another request".to_owned(),
            ),
            Self::Unsettled { error } => {
                let verdict = error.verdict();
                let message = format!("{}; call again with the same request_id", verdict.message);
                let message = message.replace(LOOK, "");
                Verdict { message, ..verdict }.retry(Retry::After(DEFAULT_RETRY_DELAY))
            }
            Self::ThreadBusy { run_id, why, .. } => {
                let message = if run_id.is_empty() {
                    format!("the thread is busy: {why}")
                } else {
                    format!("the thread has an active run {run_id:?}: {why}")
                };
                Verdict::new(Code::FailedPrecondition, R::StateConflict, message)
            }
            Self::Interrupted { error, resume } => {
                let verdict = error.verdict();
                let over = matches!(
                    **error,
                    Self::DeadlineExceeded
                        | Self::OutputsMissing { .. }
                        | Self::OutputsTooLarge { .. }
                );
                let resumable = !resume.run_id.is_empty() && (over || error.is_transient());
                let hint = if resumable {
                    "; resume by ResumeRun or ConverseRun.attach"
                } else {
                    ""
                };
                // Calling again would be another run.
                let message = verdict
                    .message
                    .trim_end_matches(again_later)
                    .trim_end_matches(again);
                let message = format!("{message}{hint}");
                Verdict { message, ..verdict }
            }
        }
    }
}

impl Resume {
    /// The part of an `ErrorInfo` that says how to resume.
    fn info(&self) -> impl Iterator<Item = (String, String)> {
        let last_event = self
            .last_event
            .as_str_name()
            .trim_start_matches("RUN_EVENT_TYPE_");
        let last_event = if self.last_event == RunEventType::Unspecified {
            ""
        } else {
            last_event
        };
        let pairs = [
            ("thread_id", &*self.thread_id),
            ("run_id", &*self.run_id),
            ("last_event", last_event),
            ("position", &*self.position),
        ];
        pairs
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| (key.to_owned(), cut(value, MAX_WORD)))
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

/// What a caller is told.
struct Verdict {
    code: Code,
    reason: ErrorReason,
    message: String,
    retry: Retry,
}

enum Retry {
    /// The code alone says whether to repeat.
    Unsaid,
    /// Do not repeat.
    Never,
    /// Repeat after this time.
    After(Duration),
}

impl Verdict {
    fn new(code: Code, reason: ErrorReason, message: String) -> Self {
        Self {
            code,
            reason,
            message,
            retry: Retry::Unsaid,
        }
    }

    fn unknown(cause: &str) -> Self {
        let message = format!("it is not known whether the call took effect ({cause}){LOOK}");
        Self::new(Code::Unknown, ErrorReason::OutcomeUnknown, message).retry(Retry::Never)
    }

    fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }
}

/// A status that a library made, such as that of an unknown method, with the reason that its code
/// stands for. One that has details, or needs none, stays as it is.
pub fn with_reason(status: Status) -> Status {
    use ErrorReason as R;
    let reason = match status.code() {
        Code::InvalidArgument => R::InvalidField,
        Code::Internal | Code::Aborted | Code::OutOfRange => R::MalformedRequest,
        Code::ResourceExhausted => R::RequestTooLarge,
        Code::Unimplemented => R::Unsupported,
        Code::NotFound => R::NotFound,
        Code::Cancelled => R::Cancelled,
        Code::DeadlineExceeded => R::DeadlineExceeded,
        Code::Unavailable => R::GatewayDraining,
        _ => return status,
    };
    if !status.details().is_empty() {
        return status;
    }
    let details = ErrorDetails::with_error_info(reason_name(reason), DOMAIN, HashMap::new());
    let metadata = status.metadata().clone();
    Status::with_error_details_and_metadata(status.code(), status.message(), details, metadata)
}

struct Log<'a>(&'a Error);

impl fmt::Display for Log<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            // The description is the gateway's own; the path may hold nothing but field names and
            // indices.
            Error::Invalid { field, .. } => write!(out, "invalid field {}", cut(field, MAX_WORD)),
            Error::Rejected(rejection) => {
                write!(out, "upstream status {}", rejection.status)?;
                if let Some(body) = &rejection.body {
                    write!(
                        out,
                        ", code {:?}, type {:?}",
                        cut(&body.code, MAX_WORD),
                        cut(&body.r#type, MAX_WORD)
                    )?;
                    if rejection.is_about_own_key() {
                        write!(out, ", words {:?}", masked::masked(&body.message))?;
                    }
                }
                Ok(())
            }
            Error::Lost {
                delivery, cause, ..
            } => write!(out, "no answer ({delivery:?}): {cause}"),
            Error::Unusable { what, .. } => write!(out, "unusable answer: {what}"),
            Error::ListUnread { what } => write!(out, "list not read: {what}"),
            Error::TooLarge { what } => write!(out, "too large: {what}"),
            Error::Malformed { what } => write!(out, "malformed: {what}"),
            Error::UnknownEncoding => out.write_str("unknown encoding"),
            Error::DeadlineExceeded => out.write_str("deadline exceeded"),
            Error::NotAdmitted { what } => write!(out, "caller not admitted: {what}"),
            Error::Draining => out.write_str("draining"),
            Error::Overloaded(limit) => write!(out, "overloaded: {}", limit.what),
            Error::MessageTimeout { .. } => out.write_str("the call's message did not come"),
            Error::Unread => out.write_str("the answer was not read, and gave way"),
            Error::OutputsMissing { ids } => write!(out, "{} outputs missing", ids.len()),
            Error::OutputsTooLarge { limit } => write!(out, "more than {limit} bytes of outputs"),
            Error::RequestIdUsed => out.write_str("request_id used for another request"),
            Error::Unsettled { error } => write!(out, "not found afterwards: {}", error.log()),
            Error::ThreadBusy { run_id, .. } => {
                write!(
                    out,
                    "active run {:?} waited for in vain",
                    cut(run_id, MAX_WORD)
                )
            }
            Error::Interrupted { error, resume } => write!(
                out,
                "{} (run {:?})",
                error.log(),
                cut(&resume.run_id, MAX_WORD)
            ),
        }
    }
}

/// The reason as `ErrorInfo` has it: without the enum's prefix.
fn reason_name(reason: ErrorReason) -> &'static str {
    let name = reason.as_str_name();
    name.strip_prefix("ERROR_REASON_").unwrap_or(name)
}

fn insert(metadata: &mut MetadataMap, key: &'static str, value: &str) {
    if let Ok(value) = value.parse() {
        metadata.insert(key, value);
    }
}

/// As much of a text as takes `limit` bytes after percent-encoding, which triples what is not plain
/// ASCII.
fn cut(text: &str, limit: usize) -> String {
    let mut used = 0;
    for (at, letter) in text.char_indices() {
        used += if matches!(letter, ' '..='~') && letter != '%' {
            1
        } else {
            3 * letter.len_utf8()
        };
        if used > limit {
            return format!("{}…", &text[..at]);
        }
    }
    text.to_owned()
}
