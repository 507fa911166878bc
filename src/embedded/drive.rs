//! What moves runs on: one task for each run that is at work, from queued until it waits for
//! outputs or ends.
//!
//! Must hold: the task keeps no state of the run; it looks at the run anew after every pause, and
//! leaves when the run was cancelled, expired or deleted meanwhile. A caller that goes away does
//! not matter to it.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;

use super::{
    Api,
    model::ModelChunk,
    prompt,
    run::{Ending, Run},
};
use crate::v1::{RunStatus, ThreadMessage};

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
        let prompt = self.at_work(|run, messages, now| {
            run.begin(now);
            prompt::of(run, messages)
        })?;
        self.until_due().await?;
        let mut reply = self.api.model.reply(prompt);
        loop {
            let (wake, expiry) = self.interruptions()?;
            let piece = tokio::select! {
                piece = reply.recv() => piece.unwrap_or_else(broken_off),
                () = wake.notified() => continue,
                () = self.api.clock.sleep_until(expiry) => continue,
            };
            self.until_due().await?;
            let last = piece.is_last();
            self.at_work(|run, messages, now| run.take(piece, messages, now))?;
            if last {
                let now = self.api.clock.now();
                self.api.store().weigh(&self.thread_id, now);
                return Some(());
            }
        }
    }

    /// Ends the run if it is being cancelled.
    async fn cancel(&self) {
        let Some(due) = self.look(&[RunStatus::Cancelling], |run, _, _| run.due) else {
            return;
        };
        self.api.clock.sleep_until(due).await;
        self.look(&[RunStatus::Cancelling], |run, messages, now| {
            run.end(Ending::Cancelled, messages, now);
        });
    }

    /// Waits until the run is to be moved on, or is cancelled or expires.
    async fn until_due(&self) -> Option<()> {
        let due = self.at_work(|run, _, now| (run.due > now).then_some(run.due))?;
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
        self.at_work(|run, _, _| {
            let expiry = run.resource.expires_at.map_or(0, |expiry| expiry.seconds);
            (
                Arc::clone(&run.wake),
                Duration::from_secs(expiry.unsigned_abs()),
            )
        })
    }

    fn at_work<T>(
        &self,
        act: impl FnOnce(&mut Run, &mut Vec<ThreadMessage>, Duration) -> T,
    ) -> Option<T> {
        self.look(&[RunStatus::Queued, RunStatus::InProgress], act)
    }

    /// Does something to the run and the messages of its thread, if it is in one of these states.
    fn look<T>(
        &self,
        states: &[RunStatus],
        act: impl FnOnce(&mut Run, &mut Vec<ThreadMessage>, Duration) -> T,
    ) -> Option<T> {
        let now = self.api.clock.now();
        let mut store = self.api.store();
        let (run, messages) = store
            .thread(&self.thread_id, now)
            .ok()?
            .run(&self.run_id)
            .ok()?;
        states
            .contains(&run.resource.status())
            .then(|| act(run, messages, now))
    }
}

/// What a run fails with when its model stops in the middle.
fn broken_off() -> ModelChunk {
    ModelChunk::failed("server_error", "The model broke off.")
}
