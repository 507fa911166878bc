//! The body of a call's answer, which can be ended from outside.
//!
//! Must hold: an answer that nobody reads ends at its deadline or its age, and gives back all that
//! it holds but what the HTTP library has of it; what is larger than a piece goes there piece by
//! piece, each a copy, so that this is two pieces and what [`Limits::stream_send_buffer`] says. An
//! answer that holds more than its call's allowance gives way once nobody has read of it for a
//! while ([`PATIENCE`]).
//!
//! [`Limits::stream_send_buffer`]: super::Limits::stream_send_buffer

use std::{
    collections::BTreeMap,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tonic::{Code, Status, body::Body};

use super::{
    call::{Call, Termination, TerminationStatus, add_reason, code, trailers},
    message,
};
use crate::shares::{GivesWay, HeldBytes, HeldPart};

/// How long an answer may go unread before it gives way.
const PATIENCE: Duration = Duration::from_secs(1);

/// The body of a call's answer. Empty once the call is over.
#[derive(Default)]
pub(super) struct CallBody {
    answer: Option<Arc<Answer>>,
    reaped: Option<Reaped>,
}

/// An answer, as both its body and whoever may end it see it: a body is not polled while its caller
/// reads nothing.
struct Answer {
    state: Mutex<State>,
    termination_status: TerminationStatus,
    /// As long as the HTTP library has anything of it, it takes its allowance.
    held: HeldBytes,
}

struct State {
    /// `None` once it was ended from outside.
    streaming: Option<Streaming>,
    /// Why it was.
    ended: Option<Termination>,
    /// Whom that wakes.
    waker: Option<Waker>,
}

struct Streaming {
    call: Call,
    handler: Body,
    /// What the handler gave and is not passed on yet, and how much that is.
    rest: Bytes,
    part: HeldPart,
    /// It gives way.
    gives_way: bool,
}

impl CallBody {
    /// The answer of `call`, whose handler has given `body`.
    pub(super) fn new(call: Call, body: Body) -> Self {
        let (limit, held, reaper) = (call.limit, call.held.clone(), call.reaper.clone());
        let termination_status = call.termination_status.clone();
        let part = held.part();
        let answer = Arc::new(Answer {
            state: Mutex::new(State {
                streaming: Some(Streaming {
                    call,
                    handler: body,
                    rest: Bytes::new(),
                    part,
                    gives_way: false,
                }),
                ended: None,
                waker: None,
            }),
            termination_status,
            held,
        });
        if let Some(streaming) = &mut answer.lock().streaming {
            let holder = || Arc::downgrade(&answer);
            if streaming.call.is_infra
                && let Some(permit) = &mut streaming.call.permit
            {
                permit.give_way(Instant::now(), holder());
            }
            streaming.yield_if_large(&answer);
        }
        let reaped = limit.map(|limit| reaper.watch(limit, &answer));
        Self {
            answer: Some(answer),
            reaped,
        }
    }

    fn over(&mut self) {
        self.reaped = None;
        self.answer = None;
    }
}

impl Answer {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it from outside.
    fn end(&self, cause: Termination) {
        let mut state = self.lock();
        let Some(mut streaming) = state.streaming.take() else {
            return;
        };
        state.ended = Some(cause);
        let waker = state.waker.take();
        drop(state);
        // Said first, so that the handler's side learns why it goes.
        let status = self.termination_status.end(cause);
        streaming.call.code = Some(status.code());
        drop(streaming);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Answer").finish_non_exhaustive()
    }
}

impl GivesWay for Answer {
    fn give_way(&self) {
        self.end(Termination::GaveWay);
    }
}

impl Streaming {
    /// From now on it gives way if it is large and nobody reads it.
    fn yield_if_large(&mut self, answer: &Arc<Answer>) {
        if answer.held.exceeds_allowance() {
            self.gives_way = true;
            let holder: Weak<Answer> = Arc::downgrade(answer);
            answer.held.give_way(Instant::now() + PATIENCE, holder);
        } else if std::mem::take(&mut self.gives_way) {
            answer.held.stay();
        }
    }

    fn poll_handler(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let handler = &mut self.handler;
        let polled = self
            .call
            .poll_unless_cut(cx, |cx| http_body::Body::poll_frame(Pin::new(handler), cx));
        let frame = match ready!(polled) {
            Ok(polled) => polled,
            Err(status) => Some(Err(status)),
        };
        Poll::Ready(match (frame, self.call.pack_above) {
            (Some(Ok(frame)), Some(above)) if frame.is_data() => {
                let data = frame.into_data().unwrap_or_default();
                Some(message::pack(data, above).map(Frame::data))
            }
            (frame, _) => frame,
        })
    }

    /// Takes what the handler gave, if there is room for it.
    fn takes(&mut self, data: Bytes) -> bool {
        if data.len() > self.call.piece && self.part.resize(data.len()).is_err() {
            return false;
        }
        // What the handler had of it is gone.
        if !self.call.streams() {
            self.call.held.release();
        }
        self.rest = data;
        true
    }

    /// The next piece of what the handler gave.
    fn piece(&mut self, answer: &Arc<Answer>) -> Frame<Bytes> {
        let size = self.call.piece;
        if self.rest.len() > size {
            let piece = Bytes::copy_from_slice(&self.rest.split_to(size));
            if self.gives_way || answer.held.exceeds_allowance() {
                self.yield_if_large(answer);
            }
            return Frame::data(piece);
        }
        let rest = std::mem::take(&mut self.rest);
        let is_piece = self.part.bytes() > 0;
        let rest = if is_piece {
            Bytes::copy_from_slice(&rest)
        } else {
            rest
        };
        // Less is always to be had.
        _ = self.part.resize(0);
        if self.gives_way {
            self.yield_if_large(answer);
        }
        Frame::data(rest)
    }
}

impl http_body::Body for CallBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(answer) = self.answer.clone() else {
            return Poll::Ready(None);
        };
        let mut state = answer.lock();
        let Some(streaming) = &mut state.streaming else {
            let cause = state.ended.unwrap_or(Termination::Closing);
            let status = answer.termination_status.end(cause);
            drop(state);
            self.over();
            return Poll::Ready(Some(Ok(Frame::trailers(trailers(status)))));
        };
        if !streaming.rest.is_empty() {
            return Poll::Ready(Some(Ok(streaming.piece(&answer))));
        }
        let Poll::Ready(frame) = streaming.poll_handler(cx) else {
            if !state
                .waker
                .as_ref()
                .is_some_and(|waker| waker.will_wake(cx.waker()))
            {
                state.waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        };
        let (ended, frame) = match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    if streaming.takes(data) {
                        return Poll::Ready(Some(Ok(streaming.piece(&answer))));
                    }
                    let status = answer.termination_status.end(Termination::GaveWay);
                    (status.code(), Some(Frame::trailers(trailers(status))))
                }
                Err(mut frame) => {
                    let code = frame.trailers_mut().map_or(Code::Unknown, |trailers| {
                        add_reason(trailers);
                        code(trailers)
                    });
                    (code, Some(frame))
                }
            },
            Some(Err(status)) => (status.code(), Some(Frame::trailers(trailers(status)))),
            None => (Code::Unknown, None),
        };
        streaming.call.code = Some(ended);
        let streaming = state.streaming.take();
        drop(state);
        drop(streaming);
        self.over();
        Poll::Ready(frame.map(Ok))
    }

    /// Only what is over is at its end: the trailers are always still to come.
    fn is_end_stream(&self) -> bool {
        self.answer.is_none()
    }

    /// Nothing is promised, as the call may be cut at any time.
    fn size_hint(&self) -> SizeHint {
        if self.answer.is_none() {
            SizeHint::with_exact(0)
        } else {
            SizeHint::default()
        }
    }
}

/// The body of an answer that a handler encodes by itself, in an extension of its response: it
/// takes the place of the one that tonic makes.
#[derive(Clone)]
pub struct EncodedBody(Arc<Mutex<Option<Body>>>);

impl EncodedBody {
    /// This body.
    pub fn new<B>(body: B) -> Self
    where
        B: http_body::Body<Data = Bytes, Error = Status> + Send + 'static,
    {
        Self(Arc::new(Mutex::new(Some(Body::new(body)))))
    }

    pub(super) fn take(&self) -> Option<Body> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Ends answers at their time, whether or not somebody polls them. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Reaper(Arc<Answers>);

#[derive(Debug, Default)]
struct Answers {
    by_time: Mutex<Times>,
    /// The first one has to end sooner than was known.
    sooner: Notify,
}

#[derive(Debug, Default)]
struct Times {
    answers: BTreeMap<(Instant, u64), (Termination, Weak<Answer>)>,
    next: u64,
}

/// An answer that is reaped in time. Dropping it forgets the answer.
struct Reaped {
    reaper: Reaper,
    key: (Instant, u64),
}

impl Reaper {
    fn watch(&self, (at, cause): (Instant, Termination), answer: &Arc<Answer>) -> Reaped {
        let mut times = self.lock();
        let key = (at, times.next);
        times.next += 1;
        let is_first = times
            .answers
            .keys()
            .next()
            .is_none_or(|(first, _)| at < *first);
        times.answers.insert(key, (cause, Arc::downgrade(answer)));
        drop(times);
        if is_first {
            self.0.sooner.notify_one();
        }
        Reaped {
            reaper: self.clone(),
            key,
        }
    }

    /// Ends answers as their time comes, for ever.
    pub(super) async fn run(&self) -> std::convert::Infallible {
        loop {
            let first = self.lock().answers.keys().next().map(|(at, _)| *at);
            let due = async {
                match first {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                () = self.0.sooner.notified() => continue,
            }
            let later = (Instant::now(), u64::MAX);
            let mut times = self.lock();
            let rest = times.answers.split_off(&later);
            let due = std::mem::replace(&mut times.answers, rest);
            drop(times);
            for (cause, answer) in due.into_values() {
                if let Some(answer) = answer.upgrade() {
                    answer.end(cause);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Times> {
        self.0
            .by_time
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        self.reaper.lock().answers.remove(&self.key);
    }
}
