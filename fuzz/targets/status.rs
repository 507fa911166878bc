//! What every error must be to a caller and to a log, whatever it was made of.

use std::sync::Arc;

use runs_gateway::{
    error::{Error, Resume},
    v1::RunEventType,
};

/// The most that message and details of a status may take on the wire, in bytes.
const MAX_STATUS: usize = 4096;

/// More than any line of a log needs that has no text of others in it but a few short words.
const MAX_LOG: usize = 2048;

/// Checks that an error can be said to a caller, by itself and as the end of a stream.
pub(crate) fn check(error: &Error) {
    let status = error.status();
    // As it goes out: the message percent-encoded, the details in base64.
    let message: usize = status
        .message()
        .bytes()
        .map(|byte| {
            if matches!(byte, b' '..=b'~') && byte != b'%' {
                1
            } else {
                3
            }
        })
        .sum();
    let size = message + status.details().len().div_ceil(3) * 4;
    assert!(size <= MAX_STATUS, "a status of {size} bytes");
    let log = error.log().to_string();
    assert!(log.len() <= MAX_LOG, "{} bytes to log", log.len());
}

/// Checks the same of a stream that ends with the error.
#[allow(dead_code, reason = "not every target has streams")]
pub(crate) fn check_interrupted(error: Error, id: &str) {
    check(&error);
    let resume = Resume {
        thread_id: id.to_owned(),
        run_id: id.to_owned(),
        last_event: RunEventType::ThreadRunStepInProgress,
        position: id.to_owned(),
    };
    check(&Error::Interrupted {
        error: Arc::new(error),
        resume,
    });
}
