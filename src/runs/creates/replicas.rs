//! Creates that other replicas may be at work on.
//!
//! Must hold:
//!
//! - Of the replicas with one event log, one is at work on a create. The others wait for it, and
//!   give their callers what it made. If it dies, its lease ends, and the next looks for its mark.
//! - Who waits for another replica has no place in a queue here: two that wait for each other's
//!   queues would wait for ever.
//! - With the store away a replica is as if there were no other: it looks for the mark. It does so
//!   only once the lease is over of whom it last knew to be at work.

use std::time::Duration;

use tokio::time::Instant;

use super::{Ids, busy::Queued, disconnect::Disconnect, remembered::Making};
use crate::{
    error::Error,
    runs::{
        Streams,
        log::{CreateTurn, LogError, SharedCreate},
    },
};

/// What is known of a create when it is this replica's turn.
pub(super) enum Turn {
    /// It is to be made.
    Make,
    /// Another replica has made it.
    Made(Ids),
}

impl Streams {
    /// Waits until no other replica is at work on this create.
    pub(super) async fn turn(&self, making: &mut Making) -> Result<Turn, Error> {
        let Some(mut shared) = making.shared.take() else {
            return Ok(Turn::Make);
        };
        let mut queued = making.queued.take();
        let turn = self.wait_for_turn(&mut shared, &mut queued);
        let turn = Disconnect::Making(making).unless(turn).await?;
        making.queued = queued;
        // Nothing more is asked of a store that is away.
        making.shared = turn.is_some().then_some(shared);
        making.has_lost_turn = false;
        Ok(match turn {
            None => Turn::Make,
            Some(CreateTurn::Made { thread_id, id }) => Turn::Made(Ids { thread_id, id }),
            Some(CreateTurn::OtherRequest) => return Err(Error::RequestIdUsed),
            Some(CreateTurn::Mine { thread_id }) => {
                if !thread_id.is_empty() {
                    making.has_thread(&thread_id);
                }
                Turn::Make
            }
            Some(CreateTurn::Theirs(_)) => unreachable!("it was waited for"),
        })
    }

    /// `None`: nobody knows whose turn it is.
    async fn wait_for_turn(
        &self,
        shared: &mut SharedCreate,
        queued: &mut Option<Queued>,
    ) -> Result<Option<CreateTurn>, Error> {
        let metrics = &self.client.telemetry().metrics().creates;
        let mut theirs_until = None;
        loop {
            let remaining = match shared.take_turn().await {
                Ok(CreateTurn::Theirs(remaining)) => {
                    *queued = None;
                    theirs_until = Some(Instant::now() + remaining);
                    remaining
                }
                Ok(turn) => {
                    if matches!(turn, CreateTurn::Made { .. }) {
                        if theirs_until.is_some() {
                            metrics.joined.inc();
                        } else {
                            metrics.repeated.inc();
                        }
                    }
                    return Ok(Some(turn));
                }
                Err(error) => {
                    let until: Instant = theirs_until.unwrap_or_else(Instant::now);
                    let remaining = until.saturating_duration_since(Instant::now());
                    if remaining.is_zero() {
                        self.replicas_unknown(&error);
                        return Ok(None);
                    }
                    remaining
                }
            };
            // A lease that is just over is over by the store's clock, too.
            shared.more(remaining + Duration::from_millis(1)).await;
        }
    }

    /// The thread of a create that is a thread and something on it.
    pub(super) async fn begun(&self, making: &mut Making, thread_id: &str) {
        making.has_thread(thread_id);
        if let Some(shared) = &making.shared
            && let Err(error) = shared.begun(thread_id).await
        {
            self.replicas_unknown(&error);
        }
    }

    /// The store does not say what other replicas do.
    pub(super) fn replicas_unknown(&self, error: &LogError) {
        self.client.telemetry().metrics().creates.store_failed.inc();
        if let Some(suppressed) = self.log_failures.due() {
            tracing::warn!(
                ?error,
                suppressed,
                "a create with a request_id goes on without other replicas"
            );
        }
    }
}

impl Making {
    /// Whether it is still this replica's turn, as far as is known.
    pub(super) async fn keeps_turn(&mut self) -> bool {
        if let Some(shared) = &mut self.shared {
            let turn = shared.take_turn().await;
            self.has_lost_turn = !matches!(turn, Ok(CreateTurn::Mine { .. }) | Err(_));
        }
        !self.has_lost_turn
    }
}
