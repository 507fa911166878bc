//! What the fuzz targets (`fuzz/`) reach for and nobody else may: with the feature `fuzzing` alone.

use super::received::{Received, received};
use crate::{
    error::Error,
    upstream::{self, sse::Frame},
    v1::RunEvent,
};

/// What a frame says; `None` if it ends the stream.
pub fn event(frame: Frame<'_>) -> Result<Option<RunEvent>, Error> {
    match received(frame) {
        Received::Event(event) => Ok(Some(event)),
        Received::Done => Ok(None),
        Received::Error(data) => Err(upstream::error_event(&data, false)),
    }
}
