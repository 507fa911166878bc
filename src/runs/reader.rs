//! What a stream holds for its reader, and what happens when the reader leaves.
//!
//! Must hold: with `cancel_on_disconnect` a run that is abandoned before its end is cancelled: its
//! reader left, or its reader's deadline passed, or the gateway ended the stream before it could
//! say which run that is. If the run's id is not known yet, the upstream's stream is read on until
//! it names the run. All of it in a bounded time, and in no other case: a stream of which nobody
//! said why it ends ([`SharedResume::abandon`]) cancels nothing.

use std::{sync::Arc, time::Duration};

use http::HeaderMap;
use tokio::{
    runtime::Handle,
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    Options, Streams,
    fetch::Parts,
    progress::{Progress, SharedResume, run_event},
    received::{Received, received},
};
use crate::{
    error::{Error, Resume},
    shares::Permit,
    upstream::{Answer, Caller, EventStream, IDEMPOTENCY_KEY, UpstreamReply},
    v1::{CancelRunRequest, RunEvent},
};

/// Pauses between attempts to cancel.
const PAUSES: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_secs(1),
    Duration::from_secs(4),
];

/// One reader of a run's events.
pub(super) struct Reader {
    pub(super) streams: Streams,
    pub(super) caller: Caller,
    pub(super) progress: Progress,
    /// The upstream's stream, while there is one.
    pub(super) source: Option<Source>,
    /// What is read of the run when it has to be polled.
    pub(super) parts: Parts,
    /// The run is to be cancelled if this is dropped.
    cancel: bool,
}

/// A live stream of the upstream, with its part of those that there may be.
pub(super) struct Source {
    pub(super) stream: Box<EventStream>,
    /// When the wait for the stream's end is over, while there is one.
    pub(super) done_until: Option<Instant>,
    pub(super) _permit: Permit,
}

impl Reader {
    pub(super) fn new(
        streams: &Streams,
        caller: &Caller,
        progress: Progress,
        options: Options,
    ) -> Self {
        Self {
            streams: streams.clone(),
            caller: caller.clone(),
            progress,
            source: None,
            // Of what is recorded, some reader may want them.
            parts: if options.include_missed_messages || options.resumable {
                Parts::Messages
            } else {
                Parts::Steps
            },
            cancel: options.cancel_on_disconnect,
        }
    }

    /// Notes an event that is sent now. Who leaves after the run's last state, or the one in which
    /// another call has to answer it, has all that such a stream is for.
    pub(super) fn sends(&mut self, event: &RunEvent) {
        self.progress.sent(event);
        if self.progress.terminal_sent() {
            self.cancel = false;
        }
    }

    /// The run is not this reader's to cancel.
    pub(super) fn keeps_run(&mut self) {
        self.cancel = false;
    }

    /// Takes up what the upstream said, behind `events` of it that were read before. The headers
    /// that the caller may see, and the first events.
    pub(super) fn opened(
        &mut self,
        reply: UpstreamReply,
        mut events: Vec<RunEvent>,
        permit: Permit,
    ) -> (HeaderMap, Vec<RunEvent>) {
        match reply {
            UpstreamReply::Stream(stream, headers) => {
                self.source = Some(Source {
                    stream,
                    done_until: None,
                    _permit: permit,
                });
                (headers, events)
            }
            UpstreamReply::Run(answer) => {
                let Answer { message, headers } = *answer;
                self.progress.knows(&message.thread_id, &message.id);
                events.push(run_event(message));
                (headers, events)
            }
        }
    }

    /// What cancels this reader's run.
    pub(super) fn canceller(&self) -> CancelOnDisconnect {
        let mut canceller = CancelOnDisconnect {
            streams: self.streams.clone(),
            caller: self.caller.clone(),
            resume: self.progress.shared(),
        };
        // The caller's key is that of its own request.
        canceller.caller.headers.remove(IDEMPOTENCY_KEY);
        canceller
    }

    /// The error that ends this stream: it says how to resume.
    pub(super) fn interrupted(&self, error: impl Into<Arc<Error>>) -> Error {
        Error::Interrupted {
            error: error.into(),
            resume: self.progress.resume(),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if self.cancel && !self.progress.is_terminal() && self.progress.is_abandoned() {
            self.canceller().begin(self.source.take());
        }
    }
}

/// Cancels a run, apart from whoever wants it cancelled.
#[derive(Debug, Clone)]
pub(super) struct CancelOnDisconnect {
    streams: Streams,
    caller: Caller,
    resume: SharedResume,
}

impl CancelOnDisconnect {
    pub(super) fn knows_run(&self) -> bool {
        !self.resume.get().run_id.is_empty()
    }

    /// Begins to cancel. If the run is not known, `source` is read until it is.
    pub(super) fn begin(self, source: Option<Source>) -> Option<AbortHandle> {
        // Without a runtime the program is at its end.
        let runtime = Handle::try_current().ok()?;
        let detached = self.streams.detached();
        let cancellation = async move {
            let limit = self.streams.limits.cancel_timeout;
            if timeout(limit, self.cancel(source)).await.is_err() {
                tracing::warn!(?limit, "a run was not cancelled in time");
            }
        };
        Some(detached.spawn_on(cancellation, &runtime).abort_handle())
    }

    async fn cancel(&self, source: Option<Source>) {
        self.find_run(source).await;
        let Resume {
            thread_id, run_id, ..
        } = self.resume.get();
        if run_id.is_empty() {
            tracing::warn!("a run cannot be cancelled: the upstream did not name it");
            return;
        }
        let request = CancelRunRequest { thread_id, run_id };
        for pause in PAUSES {
            sleep(pause).await;
            match self.streams.client.cancel_run(&self.caller, &request).await {
                Err(error) if error.is_transient() => {
                    tracing::debug!(error = %error.log(), "cancelling failed");
                }
                Err(error) => {
                    return tracing::info!(error = %error.log(), "a run was not cancelled");
                }
                Ok(_) => return self.streams.touched(&request.thread_id, &request.run_id),
            }
        }
        tracing::warn!("a run was not cancelled: the upstream does not answer");
    }

    /// Reads on until the run is known.
    async fn find_run(&self, mut source: Option<Source>) {
        let mut progress = Progress::new(self.resume.clone(), "", "");
        while let Some(open) = source.as_mut().filter(|_| !self.knows_run()) {
            match open.stream.next(self.streams.limits.idle).await {
                Ok(Some(frame)) => {
                    if let Received::Event(event) = received(frame) {
                        progress.sent(&event);
                    }
                }
                Ok(None) | Err(_) => source = None,
            }
        }
    }
}
