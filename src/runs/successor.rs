//! What goes on with a run whose log nobody writes to, or whose log cannot be had.
//!
//! Must hold: what was told is not told again.

use std::sync::Arc;

use async_stream::try_stream;

use super::{
    Events,
    event::StreamedEvent,
    follow::{Follow, Followed},
    log::Position,
    progress::{Progress, SharedResume},
    record::{ends_delivery, ends_log},
};
use crate::error::{Error, Resume};

/// Begins a conversation: given what was told, and the run by polling, its further events.
type Begin = Box<dyn FnOnce(Progress, Follow) -> Events + Send>;

/// What goes on with a run.
pub(super) enum Successor {
    /// Polling, once nobody writes: until the run is over or somebody else has to act.
    Polling,
    /// A conversation, once nobody writes or the run waits for its caller, whose place this is:
    /// until the run is over.
    Conversation {
        /// Taken when it begins.
        begin: Option<Begin>,
        /// What the log tells.
        before: Progress,
        /// The caller has the events up to here.
        known: Position,
    },
}

impl Successor {
    /// A conversation that has begun.
    pub(super) fn begun() -> Self {
        Self::Conversation {
            begin: None,
            before: Progress::default(),
            known: Position::START,
        }
    }

    /// A conversation about the run of `resume` that `begin` begins, whose caller has the events up
    /// to `known`.
    pub(super) fn conversation(begin: Begin, resume: &Resume, known: Position) -> Self {
        let own = SharedResume::default();
        Self::Conversation {
            begin: Some(begin),
            before: Progress::new(own, &resume.thread_id, &resume.run_id),
            known,
        }
    }

    pub(super) fn is_conversation(&self) -> bool {
        matches!(self, Self::Conversation { .. })
    }

    /// Whoever still writes to the log waits for this caller, in vain.
    pub(super) fn is_next(&self) -> bool {
        match self {
            Self::Polling => false,
            Self::Conversation { begin, before, .. } => begin.is_some() && before.terminal_sent(),
        }
    }

    /// After this event there is nothing to deliver.
    pub(super) fn ends_with(&self, event: &StreamedEvent) -> bool {
        let Some(event) = event.message() else {
            return false;
        };
        match self {
            Self::Polling => ends_delivery(event),
            Self::Conversation { .. } => ends_log(event),
        }
    }

    /// The caller has the events up to here.
    pub(super) fn known(&self) -> Position {
        match self {
            Self::Polling => Position::START,
            Self::Conversation { known, .. } => *known,
        }
    }

    /// Notes what the log tells.
    pub(super) fn note(&mut self, event: &StreamedEvent) {
        if let Self::Conversation { before, .. } = self {
            before.will_send(event);
        }
    }

    /// Begins: gives its events, and how they are resumed. Polling goes on after `before`, a
    /// conversation after what it was [told](Self::note).
    pub(super) fn begin(
        &mut self,
        before: &Progress,
        follow: Follow,
    ) -> Result<(SharedResume, Events), Arc<Error>> {
        match self {
            Self::Polling => Ok((before.shared(), polled(follow, before.clone()))),
            Self::Conversation { begin, before, .. } => match begin.take() {
                Some(begin) => {
                    let before = std::mem::take(before);
                    Ok((before.shared(), begin(before, follow)))
                }
                // It was there, and is gone, with what its caller said.
                None => Err(Arc::new(Error::Draining)),
            },
        }
    }
}

/// What polling shows of a run, until it is settled.
fn polled(mut follow: Follow, mut progress: Progress) -> Events {
    Box::pin(try_stream! {
        loop {
            let followed = follow.next(&progress).await;
            let followed = followed.map_err(|error| Error::Interrupted {
                error,
                resume: progress.resume(),
            })?;
            let (events, settled) = match followed {
                Followed::On(events) => (events, false),
                Followed::Settled(events, _) => (events, true),
            };
            for event in events {
                progress.sent(&event);
                yield event;
            }
            if settled {
                break;
            }
        }
    })
}
