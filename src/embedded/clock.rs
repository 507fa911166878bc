//! The time that runs live by: the machine's, or one that a test moves by hand.
//!
//! Must hold: nothing in the embedded API asks the machine for the time or sleeps by itself, so
//! that a run of ten minutes can be tested in a millisecond. Tokio's own paused time will not do:
//! it leaps ahead whenever all tasks wait, and tasks that wait for a socket count.

use std::{
    future,
    time::{Duration, SystemTime},
};

use prost_types::Timestamp;
use tokio::sync::watch;

/// A clock. Its time is what has passed since 1970.
#[derive(Debug, Clone)]
pub struct Clock(Source);

#[derive(Debug, Clone)]
enum Source {
    Machine,
    ManualClock(watch::Receiver<Duration>),
}

/// What moves a clock by hand.
#[derive(Debug)]
pub struct ManualClock(watch::Sender<Duration>);

impl Clock {
    /// The machine's clock.
    pub fn real() -> Self {
        Self(Source::Machine)
    }

    /// A clock that stands still at `start` until its hand is moved.
    pub fn by_hand(start: Duration) -> (Self, ManualClock) {
        let (hand, face) = watch::channel(start);
        (Self(Source::ManualClock(face)), ManualClock(hand))
    }

    pub(super) fn now(&self) -> Duration {
        match &self.0 {
            Source::Machine => SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default(),
            Source::ManualClock(face) => *face.borrow(),
        }
    }

    pub(super) async fn sleep_until(&self, time: Duration) {
        match &self.0 {
            Source::Machine => tokio::time::sleep(time.saturating_sub(self.now())).await,
            Source::ManualClock(face) => {
                if face.clone().wait_for(|now| *now >= time).await.is_err() {
                    // Nobody is left to move the hand.
                    future::pending::<()>().await;
                }
            }
        }
    }
}

impl ManualClock {
    /// Moves the clock ahead. Everyone whose time has come wakes.
    pub fn advance(&self, by: Duration) {
        self.0.send_modify(|now| *now += by);
    }
}

/// A time as the API writes it: whole seconds.
pub(super) fn stamp(time: Duration) -> Timestamp {
    Timestamp {
        seconds: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        nanos: 0,
    }
}
