//! Streams that can be taken up elsewhere leave a draining server early.
//!
//! Must hold: they leave one by one, spread over the first half of the drain timeout. Together they
//! would all come back together, to the servers that are left.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// The drain of the server.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    /// Cancelled when the drain begins.
    pub(super) begun: CancellationToken,
    /// The time over which streams leave.
    pub(super) within: Duration,
}

impl Drain {
    /// Waits until it is this stream's turn to leave; for ever if the server does not drain.
    pub async fn turn(self) {
        self.begun.cancelled().await;
        tokio::time::sleep(self.within.mul_f64(fastrand::f64())).await;
    }
}
