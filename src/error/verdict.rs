//! The table: from what happened to what a caller is told.

use std::time::Duration;

use tonic::Code;

use super::{Delivery, Error, Idempotency};
use crate::{shares::Limit, v1::ErrorReason};

/// What to do about a write of unknown outcome.
const LOOK: &str = "; look before doing it again";

/// How long to wait where the upstream asks to wait and does not say how long.
pub(super) const DEFAULT_RETRY_DELAY: Duration = Duration::from_secs(1);

/// What a caller is told.
pub(super) struct Verdict {
    pub(super) code: Code,
    pub(super) reason: ErrorReason,
    pub(super) message: String,
    pub(super) retry: Retry,
}

pub(super) enum Retry {
    /// The code alone says whether to repeat.
    Unsaid,
    /// Do not repeat.
    Never,
    /// Repeat after this time.
    After(Duration),
}

impl Verdict {
    pub(super) fn new(code: Code, reason: ErrorReason, message: String) -> Self {
        Self {
            code,
            reason,
            message,
            retry: Retry::Unsaid,
        }
    }

    pub(super) fn unknown(cause: &str) -> Self {
        let message = format!("it is not known whether the call took effect ({cause}){LOOK}");
        Self::new(Code::Unknown, ErrorReason::OutcomeUnknown, message).retry(Retry::Never)
    }

    pub(super) fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }
}

impl Error {
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
    pub(super) fn verdict(&self) -> Verdict {
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
