//! How a stream that broke is resumed.

use crate::v1::RunEventType;

/// How to resume a stream: watch this run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resume {
    /// The thread; empty if not known.
    pub thread_id: String,
    /// The run; empty if not known.
    pub run_id: String,
    /// The type of the last event that was sent; `Unspecified` if none was.
    pub last_event: RunEventType,
    /// The position of the last event that was sent and recorded; empty if none was.
    pub position: String,
}
