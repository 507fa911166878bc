//! An error as a log tells it: codes, ids and causes, never a message, a body, a URL or a key.

use std::fmt;

use super::{
    Error, masked,
    text::{MAX_WORD, truncate},
};

/// What a log may say of an error.
pub(super) struct Log<'a>(pub(super) &'a Error);

impl fmt::Display for Log<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            // The description is the gateway's own; the path may hold nothing but field names and
            // indices.
            Error::Invalid { field, .. } => {
                write!(out, "invalid field {}", truncate(field, MAX_WORD))
            }
            Error::Rejected(rejection) => {
                write!(out, "upstream status {}", rejection.status)?;
                if let Some(body) = &rejection.body {
                    write!(
                        out,
                        ", code {:?}, type {:?}",
                        truncate(&body.code, MAX_WORD),
                        truncate(&body.r#type, MAX_WORD)
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
                    truncate(run_id, MAX_WORD)
                )
            }
            Error::Interrupted { error, resume } => write!(
                out,
                "{} (run {:?})",
                error.log(),
                truncate(&resume.run_id, MAX_WORD)
            ),
        }
    }
}
