//! What moves runs on: one task for each run that is at work, from queued until it waits for
//! outputs or ends.
//!
//! Must hold: the task keeps nothing of the run but the reply that it reads; it looks at the run anew
//! after every pause, and leaves when the run was cancelled, expired or deleted meanwhile. A caller
//! that goes away does not matter to it.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;

use super::{
    Api,
    call_order::CallOrder,
    model::ModelChunk,
    prompt,
    rows::{Change, Run},
    run::Ending,
    store::Thread,
};
use crate::v1::RunStatus;

/// Starts the task for a run that is queued or being cancelled.
pub(super) fn start(api: &Arc<Api>, thread_id: String, run_id: String) {
    let drive = Drive {
        api: Arc::clone(api),
        thread_id,
        run_id,
    };
    tokio::spawn(async move {
        let shutdown = drive.api.shutdown.clone();
        let work = async {
            if drive.work().await.is_none() {
                drive.cancel().await;
            }
        };
        shutdown.run_until_cancelled(work).await;
    });
}

struct Drive {
    api: Arc<Api>,
    thread_id: String,
    run_id: String,
}

impl Drive {
    /// Goes from queued to the end of one reply. `None` if the run is not at work any more.
    async fn work(&self) -> Option<()> {
        self.until_due().await?;
        let prompt = self.at_work(|thread, run, now| {
            (prompt::of(run, &thread.rows().messages), run.begin(now))
        })?;
        self.until_due().await?;
        let mut reply = self.api.model.reply(prompt);
        let mut order = CallOrder::default();
        loop {
            let (wake, expiry) = self.interruptions()?;
            let piece = tokio::select! {
                piece = reply.recv() => piece.unwrap_or_else(broken_off),
                () = wake.notified() => continue,
                () = self.api.clock.sleep_until(expiry) => continue,
            };
            self.until_due().await?;
            let last = piece.is_last();
            for piece in order.take(piece) {
                self.at_work(|thread, run, now| {
                    ((), run.take(piece, &thread.rows().messages, now))
                })?;
            }
            if last {
                let now = self.api.clock.now();
                self.api.store().weigh(&self.thread_id, now);
                return Some(());
            }
        }
    }

    /// Ends the run if it is being cancelled.
    async fn cancel(&self) {
        let cancelling = [RunStatus::Cancelling];
        let due = self.in_state(&cancelling, |_, run, _| (run.progress.due, Vec::new()));
        let Some(due) = due else { return };
        self.api.clock.sleep_until(due).await;
        self.in_state(&cancelling, |thread, run, now| {
            let messages = &thread.rows().messages;
            ((), run.end(Ending::Cancelled, messages, now))
        });
    }

    /// Waits until the run is to be moved on, or is cancelled or expires.
    async fn until_due(&self) -> Option<()> {
        let due = self.at_work(|_, run, now| {
            let due = run.progress.due;
            ((due > now).then_some(due), Vec::new())
        })?;
        if let Some(due) = due {
            let (wake, expiry) = self.interruptions()?;
            tokio::select! {
                () = self.api.clock.sleep_until(due.min(expiry)) => {}
                () = wake.notified() => {}
            }
        }
        Some(())
    }

    /// What tells of a cancellation, and when the run expires.
    fn interruptions(&self) -> Option<(Arc<Notify>, Duration)> {
        self.at_work(|thread, run, _| {
            let expiry = run.resource.expires_at.map_or(0, |expiry| expiry.seconds);
            let expiry = Duration::from_secs(expiry.unsigned_abs());
            ((thread.wake(), expiry), Vec::new())
        })
    }

    fn at_work<T>(
        &self,
        look: impl FnOnce(&Thread, &Run, Duration) -> (T, Vec<Change>),
    ) -> Option<T> {
        self.in_state(&[RunStatus::Queued, RunStatus::InProgress], look)
    }

    /// Looks at the run and its thread, if it is in one of these states, and applies the changes.
    fn in_state<T>(
        &self,
        states: &[RunStatus],
        look: impl FnOnce(&Thread, &Run, Duration) -> (T, Vec<Change>),
    ) -> Option<T> {
        let now = self.api.clock.now();
        let mut store = self.api.store();
        let thread = store.thread(&self.thread_id, now).ok()?;
        let run = thread.rows().run(&self.run_id).ok()?;
        if !states.contains(&run.resource.status()) {
            return None;
        }
        let (seen, changes) = look(thread, run, now);
        thread.apply(changes);
        Some(seen)
    }
}

/// What a run fails with when its model stops in the middle.
fn broken_off() -> ModelChunk {
    ModelChunk::failed("server_error", "The model broke off.")
}
