//! A call that is open: what is held for it, and when it is cut.
//!
//! Must hold: its drop is its end, whoever drops it. Whoever drops a handler has said why before
//! ([`TerminationStatus::end`]): a handler for which nothing was said did not lose its caller.

use std::{
    any::Any,
    panic::{self, AssertUnwindSafe},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{select, sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::{
    jitter::jittered,
    termination::{Termination, TerminationStatus},
};
use crate::{
    error::Error,
    registered_waker::RegisteredWaker,
    shares::{HeldBytes, HeldPart, Owner, Permit, Shares},
    telemetry,
};

/// How many calls of a connection are open.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct OpenCalls {
    pub(super) all: usize,
    /// Those of callers that are known.
    pub(super) known: usize,
}

/// What all calls of a connection have.
#[derive(Clone)]
pub(super) struct Connected {
    /// The age at which a call is cut.
    pub(super) max_age: Option<Duration>,
    /// What is larger goes to the HTTP library in pieces of so many bytes.
    pub(super) piece: usize,
    /// Cuts them all.
    pub(super) end: CancellationToken,
    /// How many are open.
    pub(super) open: watch::Sender<OpenCalls>,
}

/// Where a call takes its permit from, once its first message is there.
pub(super) struct PermitSource {
    /// None is needed, if there are none.
    pub(super) shares: Option<Shares>,
    pub(super) owner: Owner,
}

impl PermitSource {
    fn take(&self) -> Result<Option<Permit>, Error> {
        let permit = self.shares.as_ref().map(|it| it.take(self.owner, 1));
        Ok(permit.transpose()?)
    }
}

/// All that is held for as long as the call lasts. Its drop is the end of the call.
pub(super) struct Call {
    pub(super) record: telemetry::Call,
    /// When time cuts it, and how: its deadline or its age, whichever comes first.
    pub(super) limit: Option<(Instant, Termination)>,
    end: CancellationToken,
    /// Ready when the call is cut.
    is_cut: Pin<Box<dyn Future<Output = Termination> + Send>>,
    /// Whom that will wake.
    registered: RegisteredWaker,
    pub(super) termination_status: TerminationStatus,
    /// How it ended, once that is known.
    pub(super) code: Option<Code>,
    open: watch::Sender<OpenCalls>,
    /// Its caller is known.
    is_known: bool,
    /// Its part of all calls, or of all streams of health and reflection.
    pub(super) permit: Option<Permit>,
    /// It is one of health or reflection: its permit gives way.
    pub(super) is_infra: bool,
    /// The bytes that are held for it, and those of its message.
    pub(super) held: HeldBytes,
    pub(super) message: HeldPart,
    /// Messages of its answer with more bytes are packed.
    pub(super) pack_above: Option<usize>,
    /// The largest piece of its answer that the HTTP library is given.
    pub(super) piece: usize,
}

impl Call {
    /// It begins on a connection whose calls these are.
    pub(super) fn begin(
        on: &Connected,
        record: telemetry::Call,
        is_infra: bool,
        deadline: Option<(Instant, Termination)>,
    ) -> Self {
        on.open.send_if_modified(|open| {
            open.all += 1;
            open.all == 1
        });
        let end = on.end.clone();
        let age = on
            .max_age
            .map(|age| (Instant::now() + jittered(age), Termination::Closing));
        let limit = deadline.into_iter().chain(age).min_by_key(|(at, _)| *at);
        let is_cut = {
            let end = end.clone();
            async move {
                select! {
                    () = end.cancelled() => Termination::Closing,
                    termination_due = passed(limit) => termination_due,
                }
            }
        };
        Self {
            record,
            limit,
            end,
            is_cut: Box::pin(is_cut),
            registered: RegisteredWaker::default(),
            termination_status: TerminationStatus::default(),
            code: None,
            open: on.open.clone(),
            is_known: false,
            permit: None,
            is_infra,
            held: HeldBytes::default(),
            message: HeldPart::default(),
            pack_above: None,
            piece: on.piece,
        }
    }

    /// Takes its permit.
    pub(super) fn take_permit(&mut self, source: &PermitSource) -> Result<(), Status> {
        self.permit = source.take().map_err(|error| {
            self.record.failed(&error);
            error.status()
        })?;
        Ok(())
    }

    /// What is polled, unless the call is cut, which goes first: a handler that always has more to
    /// say is cut, too. Asking whether it is due costs less than waiting for it. The status says
    /// why it is not polled any more.
    pub(super) fn poll_unless_cut<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<Result<T, Status>> {
        let termination = match self.termination_due() {
            Some(termination_due) => termination_due,
            None => match caught(|| poll(cx)) {
                Some(Poll::Ready(polled)) => return Poll::Ready(Ok(polled)),
                Some(Poll::Pending) if self.registered.is(cx) => return Poll::Pending,
                Some(Poll::Pending) => ready!(self.registered.poll(self.is_cut.as_mut(), cx)),
                None => Termination::Panic,
            },
        };
        Poll::Ready(Err(self.termination_status.end(termination)))
    }

    /// Its caller is known: its connection does not give way.
    pub(super) fn becomes_known(&mut self) {
        if self.is_known || self.is_infra {
            return;
        }
        self.is_known = true;
        self.open.send_if_modified(|open| {
            open.known += 1;
            open.known == 1
        });
    }

    /// Whether its answer is a stream.
    pub(super) fn streams(&self) -> bool {
        self.record.streams()
    }

    /// Why it is to be cut, if it is.
    pub(super) fn termination_due(&self) -> Option<Termination> {
        let passed = self
            .limit
            .filter(|(at, _)| *at <= Instant::now())
            .map(|(_, termination_due)| termination_due);
        passed.or_else(|| self.end.is_cancelled().then_some(Termination::Closing))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // Without a code, neither a handler's status nor a cut reached the caller: it left, or did
        // not read until the connection was cut. Nobody hears that any more but the handler's side,
        // which is dropped after this.
        let code = self.code.unwrap_or_else(|| {
            let termination = self.termination_due().unwrap_or(Termination::Disconnect);
            drop(self.termination_status.end(termination));
            termination.status().code()
        });
        self.record.ended(code);
        let known = usize::from(self.is_known);
        self.open.send_if_modified(|open| {
            open.all -= 1;
            open.known -= known;
            open.all == 0 || (open.known == 0 && self.is_known)
        });
    }
}

async fn passed(limit: Option<(Instant, Termination)>) -> Termination {
    let Some((at, termination_due)) = limit else {
        return std::future::pending().await;
    };
    // At once, if it has passed: a sleep takes its millisecond even so.
    if at > Instant::now() {
        tokio::time::sleep_until(at).await;
    }
    termination_due
}

/// A panic in a handler is one call's INTERNAL. Let through, the caller would see a reset stream,
/// which reads as "cancelled".
fn caught<T>(poll: impl FnOnce() -> Poll<T>) -> Option<Poll<T>> {
    // What was being polled is dropped by its owner, never polled again: nothing sees a
    // half-changed state.
    panic::catch_unwind(AssertUnwindSafe(poll))
        .inspect_err(|panic| {
            tracing::error!(panic = message(&**panic), "a handler panicked");
        })
        .ok()
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("")
}
