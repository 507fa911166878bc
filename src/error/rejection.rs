//! Answers of the upstream with an error status, and the part of the table that is about them.
//!
//! Must hold: what a status means is decided here alone; which words of a body mean more than the
//! status is, too, as services give some errors no code of their own.

use std::time::Duration;

use http::HeaderMap;
use tonic::Code;

use super::{DEFAULT_RETRY_DELAY, Idempotency, MAX_WORD, Retry, Verdict, cut};
use crate::v1::ErrorReason;

/// An answer of the upstream's with an error status.
#[derive(Debug)]
pub struct Rejection {
    /// The HTTP status.
    pub status: u16,
    /// What the body says; `None` if it has no words of a service's.
    pub body: Option<ErrorBody>,
    /// What answered has no such route: of a 404, by its body.
    pub missing_route: bool,
    /// The upstream's id of the request.
    pub request_id: Option<String>,
    /// How long it asks to wait.
    pub retry_after: Option<Duration>,
    /// Whether it asks for a retry (`x-should-retry`).
    pub should_retry: Option<bool>,
    /// What repeating the request would do.
    pub idempotency: Idempotency,
    /// Whether the credential was the gateway's own.
    pub own_key: bool,
    /// Headers of the answer that callers may see.
    pub headers: HeaderMap,
}

/// What an upstream's error body says. All texts are verbatim.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ErrorBody {
    /// What went wrong, in words.
    pub message: String,
    /// Such as `rate_limit_exceeded`; empty if not given.
    pub code: String,
    /// Such as `invalid_request_error`; empty if not given.
    pub r#type: String,
    /// The parameter to blame; empty if not given.
    pub param: String,
}

impl Rejection {
    pub(crate) fn is_quota(&self) -> bool {
        self.body.as_ref().is_some_and(ErrorBody::is_quota)
    }

    pub(super) fn is_state_conflict(&self) -> bool {
        matches!(self.status, 400 | 422)
            && self.body.as_ref().is_some_and(ErrorBody::is_state_conflict)
    }

    /// An active run of the thread is in the way. Some services say 409.
    pub(super) fn is_active_run(&self) -> bool {
        matches!(self.status, 400 | 409 | 422)
            && self.body.as_ref().is_some_and(ErrorBody::is_active_run)
    }

    /// The run that the message names.
    pub(super) fn named_run(&self) -> Option<&str> {
        self.body.as_ref().and_then(ErrorBody::named_run)
    }

    pub(super) fn param(&self) -> Option<String> {
        self.body
            .as_ref()
            .map(|body| cut(&body.param, MAX_WORD))
            .filter(|param| !param.is_empty())
    }

    /// The part of an `ErrorInfo` that says what the upstream said.
    pub(super) fn info(&self) -> impl Iterator<Item = (String, String)> {
        let body = self.body.iter().flat_map(|body| {
            [
                ("upstream_code", &body.code),
                ("upstream_type", &body.r#type),
            ]
        });
        let words = body
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| (key.to_owned(), cut(value, MAX_WORD)));
        words.chain([("http_status".to_owned(), self.status.to_string())])
    }

    /// The table's part for answers, by status. Anything that is not in it is INTERNAL.
    pub(super) fn verdict(&self) -> Verdict {
        use ErrorReason as R;
        let no_body = ErrorBody::default();
        let body = self.body.as_ref().unwrap_or(&no_body);
        let said = if body.message.is_empty() {
            format!(
                "the upstream answered with status {} and no error message",
                self.status
            )
        } else {
            body.message.clone()
        };
        let wait = Retry::After(self.retry_after.unwrap_or(DEFAULT_RETRY_DELAY));
        let new = |code, reason| Verdict::new(code, reason, said.clone());
        match self.status {
            // The message may hold a part of the key.
            401 if self.own_key => Verdict::new(
                Code::Internal,
                R::GatewayKeyRejected,
                "the upstream does not accept the gateway's own key".to_owned(),
            ),
            401 => new(Code::Unauthenticated, R::InvalidApiKey),
            400 | 422 if self.is_state_conflict() => {
                new(Code::FailedPrecondition, R::StateConflict)
            }
            400 | 413 | 415 | 422 => new(Code::InvalidArgument, R::InvalidRequest),
            402 => new(Code::ResourceExhausted, R::PaymentRequired).retry(Retry::Never),
            403 => new(Code::PermissionDenied, R::PermissionDenied),
            404 if self.missing_route => new(Code::Unimplemented, R::RouteNotFound),
            404 => new(Code::NotFound, R::NotFound),
            409 => new(Code::Aborted, R::Conflict),
            429 if self.is_quota() => {
                new(Code::ResourceExhausted, R::InsufficientQuota).retry(Retry::Never)
            }
            429 => new(Code::ResourceExhausted, R::RateLimitExceeded).retry(wait),
            499 => new(Code::Cancelled, R::Cancelled),
            500 => new(Code::Internal, R::ServerError),
            501 => new(Code::Unimplemented, R::Unsupported),
            408 | 502 | 503 | 504 | 520..=530 if self.idempotency == Idempotency::NonIdempotent => {
                Verdict::unknown(&said)
            }
            // From 520 on: an edge gave the request on, and has no answer.
            408 | 502 | 520..=530 => new(Code::Unavailable, R::UpstreamUnavailable),
            503 => new(Code::Unavailable, R::UpstreamUnavailable).retry(wait),
            504 => new(Code::DeadlineExceeded, R::UpstreamTimeout),
            _ => new(Code::Internal, R::UnexpectedStatus),
        }
    }
}

impl ErrorBody {
    /// The state of the thread or run is to blame, not the request. Services give these no code of
    /// their own, only words.
    fn is_state_conflict(&self) -> bool {
        // All words of one row are there, in any order.
        const ROWS: [&[&str]; 18] = [
            &["active run"],
            &["run", "is active"],
            &["while a run"],
            &["while run"],
            &["not accept tool outputs"],
            &["cannot submit", "output"],
            &["can't submit", "output"],
            &["unable to submit", "output"],
            &["not waiting for", "output"],
            &["not require", "action"],
            &["not in", "requires_action"],
            &["cannot update run"],
            &["cannot modify run"],
            &["run", "cannot cancel"],
            &["cannot cancel", "run"],
            &["can't cancel"],
            &["run", "cannot be"],
            &["run", "already"],
        ];
        // What only speaks of a value of the request.
        const VALUES: [&str; 4] = ["invalid value", "one of", "expected a", "must be"];
        let message = self.message.to_ascii_lowercase();
        ROWS.iter()
            .any(|row| row.iter().all(|words| message.contains(words)))
            && !VALUES.iter().any(|words| message.contains(words))
    }

    /// The words for a thread that is busy, of creates of runs and of messages.
    fn is_active_run(&self) -> bool {
        const ROWS: [&[&str]; 4] = [
            &["active run"],
            &["run", "is active"],
            &["while a run"],
            &["while run"],
        ];
        let message = self.message.to_ascii_lowercase();
        let has = |row: &&[&str]| row.iter().all(|words| message.contains(words));
        ROWS.iter().any(has)
    }

    /// The first word that has the form of a run's id.
    fn named_run(&self) -> Option<&str> {
        let is_part = |letter: char| letter.is_ascii_alphanumeric() || "_-".contains(letter);
        let words = self.message.split(|letter| !is_part(letter));
        let mut words = words.filter(|word| word.len() > 4 && word.starts_with("run_"));
        words.next()
    }

    fn is_quota(&self) -> bool {
        [&self.code, &self.r#type]
            .into_iter()
            .any(|word| word == "insufficient_quota")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_active_run_is_told_by_its_words_and_named_by_them() {
        for (message, run) in [
            (
                "Thread thread_1 already has an active run run_1.",
                Some("run_1"),
            ),
            (
                "Can't add messages to thread_1 while a run run_aB-2 is active.",
                Some("run_aB-2"),
            ),
            ("Thread has an active run", None),
            ("A run 'run_x' is active", Some("run_x")),
        ] {
            let body = ErrorBody {
                message: message.to_owned(),
                ..ErrorBody::default()
            };
            assert!(body.is_active_run(), "{message}");
            assert_eq!(body.named_run(), run, "{message}");
        }
        let other = ErrorBody {
            message: "Run run_1 is not waiting for outputs".to_owned(),
            ..ErrorBody::default()
        };
        assert!(!other.is_active_run());
    }

    #[test]
    fn a_state_conflict_is_told_by_its_words() {
        let said = |message: &str| ErrorBody {
            message: message.to_owned(),
            ..ErrorBody::default()
        };
        for conflict in [
            "Thread thread_1 already has an active run run_1.",
            "Runs in status \"queued\" do not accept tool outputs.",
            "Can't add messages to thread_1 while a run run_1 is active.",
            "Cannot update run with status 'in_progress'.",
            "Cannot cancel run with status 'completed'.",
            "run run_1 cannot cancel",
            "Run status is \"completed\", cannot submit tool outputs",
            "Run is already cancelled",
            "The run was already completed.",
            "run_1 is not in status requires_action: cannot submit outputs",
            "Run run_1 is not in requires_action state",
            "This run does not require action",
            "Run cannot be cancelled in status failed",
        ] {
            assert!(said(conflict).is_state_conflict(), "{conflict}");
        }
        for other in [
            "Invalid 'status'.",
            "Invalid value: 'requires_action'. Supported values are: 'auto'.",
            "tool_outputs is required",
            "No run found with id 'run_1'.",
            "Invalid assistant_id did you create this assistant beforehand?",
            "The run's metadata must be an object that has not already more than 16 keys.",
        ] {
            assert!(!said(other).is_state_conflict(), "{other}");
        }
    }
}
