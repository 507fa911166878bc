//! What a run fails with when a model gives no answer, or no whole one.
//!
//! | what happened | `last_error.code` |
//! |---|---|
//! | 429 | `rate_limit_exceeded` |
//! | any other 4xx but 408, 409 and 425, which pass | `invalid_prompt` |
//! | all else | `server_error` |
//!
//! Must hold: the words name the flags of the model and not those of the upstream, and no key: the
//! service's own words about one may hold a part of it.

use std::time::Duration;

use crate::{embedded::model::ModelChunk, error::Error, telemetry::in_words_of_the_model};

/// The longest message, in characters.
const MAX_MESSAGE: usize = 600;

/// For a request that failed.
pub(super) fn of(error: &Error) -> ModelChunk {
    let code = match error {
        Error::Rejected(rejection) => match rejection.status {
            429 => "rate_limit_exceeded",
            408 | 409 | 425 => "server_error",
            400..500 => "invalid_prompt",
            _ => "server_error",
        },
        _ => "server_error",
    };
    let message = match error {
        Error::Rejected(rejection) => match (rejection.status, &rejection.body) {
            (401 | 403, _) => {
                "The model's service does not accept the key: see --model-api-key-file.".to_owned()
            }
            (status, Some(body)) if !body.message.is_empty() => {
                format!(
                    "The model's service answered with status {status}: {}",
                    body.message
                )
            }
            (status, _) => format!("The model's service answered with status {status}."),
        },
        Error::Lost { cause, .. } => in_words_of_the_model(cause),
        other => in_words_of_the_model(other.status().message()),
    };
    failed(code, &message)
}

/// For an answer that ended before its end, or is none.
pub(super) fn broken(why: &str) -> ModelChunk {
    let why = in_words_of_the_model(why);
    failed(
        "server_error",
        &format!("The model's answer broke off: {why}."),
    )
}

/// For an answer that takes too long.
pub(super) fn too_slow(limit: Duration) -> ModelChunk {
    let message = format!("The model gave no whole answer within {limit:?} (--model-timeout).");
    failed("server_error", &message)
}

fn failed(code: &str, message: &str) -> ModelChunk {
    ModelChunk::failed(code, message.chars().take(MAX_MESSAGE).collect::<String>())
}
