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
    /// What the body says; `None` if it is not a JSON error in one of the known shapes.
    pub body: Option<ErrorBody>,
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
        self.status == 400 && self.body.as_ref().is_some_and(ErrorBody::is_state_conflict)
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
            400 if self.is_state_conflict() => new(Code::FailedPrecondition, R::StateConflict),
            400 | 413 | 415 | 422 => new(Code::InvalidArgument, R::InvalidRequest),
            402 => new(Code::ResourceExhausted, R::PaymentRequired).retry(Retry::Never),
            403 => new(Code::PermissionDenied, R::PermissionDenied),
            404 if self.body.is_none() => new(Code::Unimplemented, R::RouteNotFound),
            404 => new(Code::NotFound, R::NotFound),
            409 => new(Code::Aborted, R::Conflict),
            429 if self.is_quota() => {
                new(Code::ResourceExhausted, R::InsufficientQuota).retry(Retry::Never)
            }
            429 => new(Code::ResourceExhausted, R::RateLimitExceeded).retry(wait),
            499 => new(Code::Cancelled, R::Cancelled),
            500 => new(Code::Internal, R::ServerError),
            501 => new(Code::Unimplemented, R::Unsupported),
            408 | 502 | 503 | 504 if self.idempotency == Idempotency::NonIdempotent => {
                Verdict::unknown(&said)
            }
            408 | 502 => new(Code::Unavailable, R::UpstreamUnavailable),
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
        const WORDS: [&str; 6] = [
            "already has an active run",
            "do not accept tool outputs",
            "does not accept tool outputs",
            "while a run",
            "cannot update run with status",
            "cannot cancel run with status",
        ];
        let message = self.message.to_ascii_lowercase();
        WORDS.iter().any(|words| message.contains(words))
    }

    fn is_quota(&self) -> bool {
        [&self.code, &self.r#type]
            .into_iter()
            .any(|word| word == "insufficient_quota")
    }
}
