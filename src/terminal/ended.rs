//! How `run` and `watch` end.

use std::error::Error;

use crate::v1::RunStatus;

/// What could not be done, as one line.
pub(super) type Failure = Box<dyn Error + Send + Sync>;

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The run was completed.
    Completed,
    /// The run failed, expired, was cancelled or is incomplete.
    Unsuccessful,
    /// The run waits for tool outputs, which cannot be given here.
    RequiresAction,
    /// Ctrl-C left a run that goes on.
    Left,
}

impl Ended {
    /// The exit code of the process.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Completed => 0,
            Self::Unsuccessful => 3,
            Self::RequiresAction => 4,
            Self::Left => 130,
        }
    }

    pub(super) fn of(status: RunStatus) -> Self {
        match status {
            RunStatus::Completed => Self::Completed,
            RunStatus::RequiresAction => Self::RequiresAction,
            _ => Self::Unsuccessful,
        }
    }
}
