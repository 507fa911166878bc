//! What a stream holds for its reader, and what happens when the reader leaves.
//!
//! Must hold: with `cancel_on_disconnect` a run whose reader left before its end is cancelled, also when its id is not known yet: then the
//! upstream's stream is read on until it names the run. All of it in a bounded time, and in no other case.

use std::{sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    sync::OwnedSemaphorePermit,
    time::{sleep, timeout},
};

use super::{
    Options, Streams,
    progress::Progress,
    received::{Received, received},
};
use crate::{
    error::Error,
    rest::{Caller, EventStream},
    v1::{CancelRunRequest, RunEvent},
};

/// Pauses between attempts to cancel.
const PAUSES: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(4)];

/// One reader of a run's events.
pub(super) struct Reader {
    pub(super) streams: Streams,
    pub(super) caller: Caller,
    pub(super) progress: Progress,
    /// The upstream's stream, while there is one.
    pub(super) source: Option<Source>,
    /// The run is to be cancelled if this is dropped.
    cancel: bool,
}

/// A live stream of the upstream, with its place among those that there may be.
pub(super) struct Source {
    pub(super) stream: EventStream,
    pub(super) _place: OwnedSemaphorePermit,
}

impl Reader {
    pub(super) fn new(streams: &Streams, caller: &Caller, progress: Progress, options: Options) -> Self {
        Self { streams: streams.clone(), caller: caller.clone(), progress, source: None, cancel: options.cancel_on_disconnect }
    }

    /// Notes an event that is sent now. Who leaves after the run's last state, or the one in which another call has to answer it, has all that
    /// such a stream is for.
    pub(super) fn sends(&mut self, event: &RunEvent) {
        self.progress.sent(event);
        if self.progress.is_told() {
            self.settle();
        }
    }

    /// The stream came to its end: nothing is to be cancelled any more.
    pub(super) fn settle(&mut self) {
        self.cancel = false;
    }

    /// The error that ends this stream: it says how to resume. The reader did not leave.
    pub(super) fn interrupted(&mut self, error: impl Into<Arc<Error>>) -> Error {
        self.settle();
        Error::Interrupted { error: error.into(), resume: self.progress.resume() }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !self.cancel || self.progress.is_terminal() || self.progress.is_handed_over() {
            return;
        }
        let farewell = Farewell {
            streams: self.streams.clone(),
            caller: self.caller.clone(),
            progress: std::mem::take(&mut self.progress),
            source: self.source.take(),
        };
        // A reader that outlives the runtime has nobody to cancel for it.
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            let limit = farewell.streams.limits.farewell;
            if timeout(limit, farewell.cancel()).await.is_err() {
                tracing::warn!(?limit, "a run whose reader left was not cancelled in time");
            }
        });
    }
}

/// What is left to do for a reader that is gone.
struct Farewell {
    streams: Streams,
    caller: Caller,
    progress: Progress,
    source: Option<Source>,
}

impl Farewell {
    async fn cancel(mut self) {
        self.find_run().await;
        self.source = None;
        let resume = self.progress.resume();
        if resume.run_id.is_empty() {
            tracing::warn!("a run whose reader left cannot be cancelled: the upstream did not name it");
            return;
        }
        let request = CancelRunRequest { thread_id: resume.thread_id, run_id: resume.run_id };
        for pause in PAUSES {
            sleep(pause).await;
            match self.streams.client.cancel_run(&self.caller, &request).await {
                Err(error) if error.may_pass() => tracing::debug!(error = %error.log(), "cancelling failed"),
                Err(error) => return tracing::info!(error = %error.log(), "a run whose reader left was not cancelled"),
                Ok(_) => return self.streams.touched(&request.thread_id, &request.run_id),
            }
        }
        tracing::warn!("a run whose reader left was not cancelled: the upstream does not answer");
    }

    /// Reads on until the run is known.
    async fn find_run(&mut self) {
        while let Some(source) = self.source.as_mut().filter(|_| self.progress.resume().run_id.is_empty()) {
            match source.stream.next(self.streams.limits.idle).await {
                Ok(Some(frame)) => {
                    if let Received::Event(event) = received(&frame) {
                        self.progress.sent(&event);
                    }
                }
                Ok(None) | Err(_) => self.source = None,
            }
        }
    }
}
