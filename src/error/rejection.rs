//! Answers of the upstream with an error status, and the part of the table that is about them.
//!
//! Must hold: what a status means is decided here alone, and where a body's words mean more than the
//! status, what [`words`] says of them.

use std::time::Duration;

use http::HeaderMap;
use tonic::Code;

use super::{
    Idempotency,
    text::{MAX_MESSAGE, MAX_WORD, truncate},
    verdict::{DEFAULT_RETRY_DELAY, Retry, Verdict},
    words,
};
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
    /// Each parameter to blame, where the body says of each what is wrong. A few of them, where
    /// there are many.
    pub fields: Vec<FieldError>,
}

impl ErrorBody {
    /// All texts of it.
    pub(crate) fn texts_mut(&mut self) -> impl Iterator<Item = &mut String> {
        let fields = self.fields.iter_mut();
        let fields = fields.flat_map(|it| [&mut it.field, &mut it.message]);
        let own = [
            &mut self.message,
            &mut self.code,
            &mut self.r#type,
            &mut self.param,
        ];
        fields.chain(own)
    }
}

/// What an upstream says of one field of the request.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Such as `tools[0].type`.
    pub field: String,
    /// What is wrong with it, in words.
    pub message: String,
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

    /// Whether it is the credential that the upstream does not accept.
    pub(crate) fn refuses_key(&self) -> bool {
        match self.status {
            401 => true,
            // Callers have no other rights than the gateway's key.
            403 if self.own_key => true,
            400 | 403 => self.body.as_ref().is_some_and(ErrorBody::is_about_key),
            _ => false,
        }
    }

    /// Whether it is the gateway's own key that the upstream does not accept. The words may hold a
    /// part of it, and callers can do nothing about it.
    pub(crate) fn is_about_own_key(&self) -> bool {
        self.own_key && self.refuses_key()
    }

    /// The fields to blame, each with what is wrong: of all together, as many as one `message` is
    /// long.
    pub(super) fn blamed(&self, message: &str) -> Vec<(String, String)> {
        let Some(body) = &self.body else {
            return Vec::new();
        };
        if body.fields.is_empty() {
            let param = Some(truncate(&body.param, MAX_WORD)).filter(|param| !param.is_empty());
            return param
                .map(|param| (param, message.to_owned()))
                .into_iter()
                .collect();
        }
        let mut left = MAX_MESSAGE;
        let mut blamed = Vec::new();
        for FieldError { field, message } in &body.fields {
            let field = truncate(field, MAX_WORD);
            left = left.saturating_sub(field.len());
            if left == 0 {
                break;
            }
            let words = truncate(message, left);
            left = left.saturating_sub(words.len());
            blamed.push((field, words));
        }
        blamed
    }

    /// The part of an `ErrorInfo` that says what the upstream said.
    pub(super) fn info(&self) -> impl Iterator<Item = (String, String)> {
        let told = self.body.iter().filter(|_| !self.is_about_own_key());
        let body = told.flat_map(|body| {
            [
                ("upstream_code", &body.code),
                ("upstream_type", &body.r#type),
            ]
        });
        let words = body
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| (key.to_owned(), truncate(value, MAX_WORD)));
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
        let asked = match self.retry_after {
            Some(delay) if self.idempotency == Idempotency::Idempotent => Retry::After(delay),
            _ => Retry::Unsaid,
        };
        let new = |code, reason| Verdict::new(code, reason, said.clone());
        match self.status {
            _ if self.is_about_own_key() => Verdict::new(
                Code::Internal,
                R::GatewayKeyRejected,
                "the upstream does not accept the gateway's own key".to_owned(),
            ),
            _ if self.refuses_key() => new(Code::Unauthenticated, R::InvalidApiKey),
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
            500 => new(Code::Internal, R::ServerError).retry(asked),
            501 => new(Code::Unimplemented, R::Unsupported),
            408 | 502 | 503 | 504 | 520..=530 if self.idempotency == Idempotency::NonIdempotent => {
                Verdict::unknown(&said)
            }
            // From 520 on: an edge gave the request on, and has no answer.
            408 | 502 | 520..=530 => new(Code::Unavailable, R::UpstreamUnavailable).retry(asked),
            503 => new(Code::Unavailable, R::UpstreamUnavailable).retry(wait),
            504 => new(Code::DeadlineExceeded, R::UpstreamTimeout).retry(asked),
            _ => new(Code::Internal, R::UnexpectedStatus),
        }
    }
}

impl ErrorBody {
    fn is_state_conflict(&self) -> bool {
        words::is_state_conflict([&self.code, &self.r#type], &self.message)
    }

    fn is_about_key(&self) -> bool {
        // Words about a parameter are not about the credential of the request.
        let message = if self.param.is_empty() {
            &*self.message
        } else {
            ""
        };
        words::is_about_key([&self.code, &self.r#type], message)
    }

    fn is_active_run(&self) -> bool {
        words::is_active_run([&self.code, &self.r#type], &self.message)
    }

    fn named_run(&self) -> Option<&str> {
        words::named_run(&self.message)
    }

    fn is_quota(&self) -> bool {
        [&self.code, &self.r#type]
            .into_iter()
            .any(|word| word == "insufficient_quota")
    }
}
