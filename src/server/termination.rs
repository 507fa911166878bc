//! Why a call ends before its handler does, and what it answers then.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use tonic::Status;

/// Why a call ended before its handler did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Termination {
    /// The caller left.
    Disconnect,
    /// Its deadline passed.
    Deadline,
    /// The longest deadline that a call may have passed, before the caller's own.
    MaxDeadline,
    /// Its connection, or the whole server, is about to close, or it has reached its own age.
    Closing,
    /// Its handler panicked.
    Panic,
    /// Others need the room that it takes.
    GaveWay,
}

impl Termination {
    pub(super) fn status(self) -> Status {
        match self {
            Self::Disconnect => Status::cancelled("the caller left"),
            Self::Panic => Status::internal("the gateway failed"),
            Self::Deadline | Self::MaxDeadline => {
                Status::deadline_exceeded("the deadline passed before the call was over")
            }
            Self::GaveWay => {
                Status::unavailable("others need the room that this call takes: call again")
            }
            Self::Closing => {
                Status::unavailable("the gateway ends this call, or its connection: call again")
            }
        }
    }
}

/// What a call answers when it is cut. Unless it is set, that is `DEADLINE_EXCEEDED` or
/// `UNAVAILABLE`. It also is how a handler learns why it is dropped.
///
/// A handler changes it where those would mislead: UNAVAILABLE is repeated by meshes, which a write
/// that may have reached the upstream must not be; and a stream can say how to resume.
#[derive(Clone, Default)]
pub struct TerminationStatus(Arc<Mutex<Option<Words>>>);

type Words = Box<dyn Fn(Termination) -> Status + Send>;

impl TerminationStatus {
    /// From now on a cut answers what `words` says.
    pub fn set(&self, words: impl Fn(Termination) -> Status + Send + 'static) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(words));
    }

    /// The call ends for this reason. Called before the handler is dropped.
    pub(super) fn end(&self, cut: Termination) -> Status {
        let words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        words
            .as_ref()
            .map_or_else(|| cut.status(), |words| words(cut))
    }
}

impl fmt::Debug for TerminationStatus {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("TerminationStatus")
            .finish_non_exhaustive()
    }
}
