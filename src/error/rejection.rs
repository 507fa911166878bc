//! Answers of the upstream with an error status, and the part of the table that is about them.
//!
//! Must hold: what a status means is decided here alone; which words of a body mean more than the
//! status is, too, as services give some errors no code of their own.

use std::time::Duration;

use http::HeaderMap;
use tonic::Code;

use super::{DEFAULT_RETRY_DELAY, Idempotency, MAX_MESSAGE, MAX_WORD, Retry, Verdict, cut};
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
            let param = Some(cut(&body.param, MAX_WORD)).filter(|param| !param.is_empty());
            return param
                .map(|param| (param, message.to_owned()))
                .into_iter()
                .collect();
        }
        let mut left = MAX_MESSAGE;
        let mut blamed = Vec::new();
        for FieldError { field, message } in &body.fields {
            let field = cut(field, MAX_WORD);
            left = left.saturating_sub(field.len());
            if left == 0 {
                break;
            }
            let words = cut(message, left);
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
    /// The state of the thread or run is to blame, not the request. Services give these seldom a
    /// code of their own, only words.
    fn is_state_conflict(&self) -> bool {
        const CODES: [&str; 6] = [
            "failed_precondition",
            "state_conflict",
            "invalid_state",
            "invalid_run_state",
            "thread_locked",
            "active_run",
        ];
        // All words of one row are there, in any order.
        const ROWS: [&[&str]; 29] = [
            // Another run is at work.
            &["active run"],
            &["run", "is active"],
            &["run", "currently active"],
            &["while run"],
            &["while another run"],
            &["run", "in progress"],
            &["run", "is in_progress"],
            &["run", "is queued"],
            &["run", "still running"],
            &["run", "thread", "is running"],
            &["run", "thread", "ongoing"],
            &["thread", "is locked"],
            &["thread", "is busy"],
            // No outputs are waited for.
            &["not accept tool outputs"],
            &["cannot submit", "output"],
            &["not waiting for", "output"],
            &["not awaiting"],
            &["not expect", "tool output"],
            &["no pending tool"],
            &["no tool", "pending"],
            &["no tool", "awaiting"],
            &["no tool", "expected"],
            &["not require", "action"],
            &["not in", "requires_action"],
            &["run", "must be in", "requires_action"],
            // The run is over, or this cannot be done to it.
            &["run", "already"],
            &["run", "terminal"],
            &["cannot", "run", "in status"],
            &["cannot", "run", "with status"],
        ];
        // A run that came to its end: `run_1 has expired`.
        const VERBS: [&str; 4] = ["has", "was", "is", "has been"];
        const ENDS: [&str; 4] = ["completed", "cancelled", "expired", "finished"];
        // What cannot be done to a run.
        const DEEDS: [&str; 6] = [
            "update",
            "modify",
            "cancel",
            "be updated",
            "be modified",
            "be cancelled",
        ];
        // What only speaks of a value of the request.
        const VALUES: [&str; 9] = [
            "invalid value",
            "invalid type",
            "one of",
            "expected a ",
            "expected an ",
            "must be a ",
            "must be an ",
            "is required",
            "unknown parameter",
        ];
        let code = [&self.code, &self.r#type].map(|word| word.to_ascii_lowercase());
        if CODES
            .iter()
            .any(|known| code.iter().any(|word| word == known))
        {
            return true;
        }
        let message = plain(&self.message);
        let has = |words: &str| message.contains(words);
        let is_over = || {
            has("run")
                && VERBS
                    .iter()
                    .any(|verb| ENDS.iter().any(|end| has(&format!("{verb} {end}"))))
        };
        let is_done = || has("run") && DEEDS.iter().any(|deed| has(&format!("cannot {deed}")));
        let in_rows = ROWS.iter().any(|row| row.iter().all(|words| has(words)));
        (in_rows || is_over() || is_done()) && !VALUES.iter().any(|words| has(words))
    }

    /// The credential is to blame. Not all services answer so with 401.
    fn is_about_key(&self) -> bool {
        const NAMES: [&str; 7] = [
            "api_key",
            "apikey",
            "authentication",
            "unauthenticated",
            "unauthorized",
            "invalid_token",
            "expired_token",
        ];
        const KEYS: [&str; 4] = ["api key", "api-key", "access token", "bearer token"];
        const FAULTS: [&str; 9] = [
            "incorrect",
            "invalid",
            "not valid",
            "expired",
            "missing",
            "revoked",
            "disabled",
            "wrong",
            "provide",
        ];
        let names = [&self.code, &self.r#type].map(|name| name.to_ascii_lowercase());
        if NAMES
            .iter()
            .any(|known| names.iter().any(|name| name.contains(known)))
        {
            return true;
        }
        let message = self.message.to_ascii_lowercase();
        let has = |words: &&str| message.contains(words);
        self.param.is_empty() && KEYS.iter().any(has) && FAULTS.iter().any(has)
    }

    fn is_quota(&self) -> bool {
        [&self.code, &self.r#type]
            .into_iter()
            .any(|word| word == "insufficient_quota")
    }
}

/// Words in one spelling.
fn plain(message: &str) -> String {
    const SPELLINGS: [(&str, &str); 10] = [
        ("\u{2019}", "'"),
        ("can't", "cannot"),
        ("n't", " not"),
        ("can not", "cannot"),
        ("could not", "cannot"),
        ("unable to", "cannot"),
        ("canceled", "cancelled"),
        ("the run", "run"),
        ("a run", "run"),
        ("this run", "run"),
    ];
    let message = message.to_ascii_lowercase();
    SPELLINGS
        .iter()
        .fold(message, |message, (one, other)| message.replace(one, other))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            "There are no pending tool outputs for this run.",
            "No tool outputs are expected for run run_1.",
            "Cannot modify run in status expired.",
            "A run is already in progress for this thread.",
            "Another run is still running on thread_1.",
            "Thread thread_1 is locked by run run_2",
            "Run run_1 has expired.",
            "The run was canceled.",
            "Run run_1 isn\u{2019}t in requires_action state",
            "Run must be in 'requires_action' to submit outputs",
            "Run run_1 is in a terminal state",
            "Run is completed and can't be modified",
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
            "run_id cannot be empty",
            "Missing required parameter: 'run.assistant_id'.",
            "An error occurred while parsing the run: invalid JSON",
            "Invalid 'tools[0].type': expected one of 'function', 'file_search'.",
            "The requested model 'run-1' does not exist.",
            "Failed to create run: validation has failed",
        ] {
            assert!(!said(other).is_state_conflict(), "{other}");
        }
    }
}
