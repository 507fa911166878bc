//! An error as a gRPC status with its details.

use std::collections::HashMap;

use tonic::{Code, Status, metadata::MetadataMap};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{
    Error, Resume,
    text::{MAX_MESSAGE, MAX_WORD, truncate},
    verdict::{Retry, Verdict},
};
use crate::v1::{ErrorReason, RunEventType};

/// The domain of every `ErrorInfo`.
pub const DOMAIN: &str = "runsgateway.v1";

impl Error {
    /// The status that the caller gets, with its details.
    pub fn status(&self) -> Status {
        let Verdict {
            code,
            reason,
            message,
            retry,
        } = self.verdict();
        let message = truncate(&message, MAX_MESSAGE);
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
                details.add_bad_request_violation(
                    truncate(field, MAX_WORD),
                    truncate(description, MAX_MESSAGE),
                );
            }
            Self::Rejected(rejection) => {
                info.extend(rejection.info());
                if code == Code::InvalidArgument {
                    for (field, words) in rejection.blamed(&message) {
                        details.add_bad_request_violation(field, words);
                    }
                }
                if let Some(id) = &rejection.request_id {
                    details.set_request_info(truncate(id, MAX_WORD), "");
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
                details.set_request_info(truncate(id, MAX_WORD), "");
            }
            Self::UnknownEncoding => {
                insert(&mut metadata, "grpc-accept-encoding", "identity,gzip");
            }
            Self::ThreadBusy {
                thread_id, run_id, ..
            } => {
                let ids = [("thread_id", thread_id), ("run_id", run_id)];
                info.extend(ids.map(|(name, id)| (name.to_owned(), truncate(id, MAX_WORD))));
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
            .map(|(key, value)| (key.to_owned(), truncate(value, MAX_WORD)))
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
