//! How a create that waits knows that nobody waits for it any more.

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::remembered::Making;
use crate::{error::Error, v1::RunEvent};

/// How a create knows, while it waits, that nobody waits for it any more.
pub(in crate::runs) enum Disconnect<'a> {
    /// It is dropped.
    Dropped,
    /// This is cancelled.
    Token(&'a CancellationToken),
    /// This is closed.
    Events(&'a mpsc::Sender<RunEvent>),
    /// No call is left of those that joined it.
    Making(&'a mut Making),
}

impl Disconnect<'_> {
    /// Does `work` unless everybody has left.
    pub(super) async fn unless<T>(
        &mut self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let disconnect = async {
            match self {
                Self::Dropped => std::future::pending().await,
                Self::Token(token) => token.cancelled().await,
                Self::Events(events) => events.closed().await,
                Self::Making(making) => making.disconnect().await,
            }
        };
        tokio::select! {
            done = work => done,
            // Nobody is told.
            () = disconnect => Err(Error::Draining),
        }
    }
}
