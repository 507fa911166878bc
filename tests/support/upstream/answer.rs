//! What the scripted upstream says to one request: a head, a body in steps, and what becomes of the
//! connection.

use std::{fmt::Write, sync::Arc, time::Duration};

use bytes::Bytes;
use http::StatusCode;
use tokio::sync::{Notify, mpsc};

/// One step of a body.
pub(crate) enum Step {
    /// Says this, in one write (and, where the body is chunked, as one chunk).
    Bytes(Bytes),
    /// Says what the test sends, each as it comes, until the sender is dropped.
    Stream(mpsc::Receiver<Bytes>),
    /// Goes on when the test says so: `notify_one`, which may come before.
    Wait(Arc<Notify>),
    /// For tests that are about time, and no others.
    Pause(Duration),
    /// Ends the connection by a reset. The client may lose what it has not read yet: wait for it to
    /// say that it has.
    Cut,
    /// Ends the connection in good order (FIN), but the body wherever it is.
    Close,
}

/// The answer to one request.
pub(crate) struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    pub(super) framing: Framing,
    pub(super) body: Vec<Step>,
    pub(super) after: After,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    Length,
    Chunked,
    UntilClose,
    /// The body is all there is: no head is written.
    Raw,
}

/// What becomes of the connection after a whole answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    Keep,
    Close,
    Cut,
    CloseOnNextRequest,
    CutOnNextRequest,
}

impl Answer {
    /// An answer without a body, of a `content-length` that counts the bytes that are added.
    pub(crate) fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            framing: Framing::Length,
            body: Vec::new(),
            after: After::Keep,
        }
    }

    pub(crate) fn json(status: u16, text: impl Into<Bytes>) -> Self {
        Self::new(status)
            .header("content-type", "application/json")
            .bytes(text)
    }

    /// A whole event stream, each of `chunks` written by itself.
    pub(crate) fn sse<B: Into<Bytes>>(chunks: impl IntoIterator<Item = B>) -> Self {
        chunks.into_iter().fold(Self::events(), Self::bytes)
    }

    /// An event stream that the test speaks live. Dropping the sender ends it in good order; with
    /// [`Self::cut`] it cuts it.
    pub(crate) fn sse_with(chunks: mpsc::Receiver<Bytes>) -> Self {
        Self::events().step(Step::Stream(chunks))
    }

    fn events() -> Self {
        Self::new(200)
            .header("content-type", "text/event-stream; charset=utf-8")
            .chunked()
    }

    /// These bytes and nothing of ours: what is wrong, or not a plain answer (1xx, a false length,
    /// garbage).
    pub(crate) fn raw(bytes: impl Into<Bytes>) -> Self {
        Self {
            framing: Framing::Raw,
            ..Self::new(0)
        }
        .bytes(bytes)
    }

    /// Takes the request and resets the connection.
    pub(crate) fn cut_before_answer() -> Self {
        Self::raw("").cut()
    }

    /// Takes the request and says nothing until the client leaves.
    pub(crate) fn never() -> Self {
        Self::raw("").step(Step::Wait(Arc::default()))
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn chunked(mut self) -> Self {
        self.framing = Framing::Chunked;
        self
    }

    /// The body ends where the connection is closed.
    pub(crate) fn until_close(mut self) -> Self {
        self.framing = Framing::UntilClose;
        self.after = After::Close;
        self
    }

    /// Adds to the body. A live one has no length to announce: it makes the body chunked.
    pub(crate) fn step(mut self, step: Step) -> Self {
        if self.framing == Framing::Length && matches!(step, Step::Stream(_)) {
            self.framing = Framing::Chunked;
        }
        self.body.push(step);
        self
    }

    pub(crate) fn bytes(self, bytes: impl Into<Bytes>) -> Self {
        self.step(Step::Bytes(bytes.into()))
    }

    pub(crate) fn wait(self, until: &Arc<Notify>) -> Self {
        self.step(Step::Wait(Arc::clone(until)))
    }

    pub(crate) fn cut(self) -> Self {
        self.step(Step::Cut)
    }

    pub(crate) fn close(self) -> Self {
        self.step(Step::Close)
    }

    /// After the whole answer, closes the connection, without having said so in the head.
    pub(crate) fn then_close(mut self) -> Self {
        self.after = After::Close;
        self
    }

    /// After the whole answer, resets the connection.
    pub(crate) fn then_cut(mut self) -> Self {
        self.after = After::Cut;
        self
    }

    /// Keeps the connection, and closes it on the first byte of its next request: a kept connection
    /// that was stale.
    pub(crate) fn then_close_on_next_request(mut self) -> Self {
        self.after = After::CloseOnNextRequest;
        self
    }

    /// The same, by a reset.
    pub(crate) fn then_cut_on_next_request(mut self) -> Self {
        self.after = After::CutOnNextRequest;
        self
    }

    pub(super) fn head(&self) -> String {
        let mut head = String::new();
        if self.framing == Framing::Raw {
            return head;
        }
        let reason = StatusCode::from_u16(self.status)
            .ok()
            .and_then(|status| status.canonical_reason())
            .unwrap_or_default();
        let _ = write!(head, "HTTP/1.1 {} {reason}\r\n", self.status);
        for (name, value) in &self.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        let _ = match self.framing {
            Framing::Length => write!(head, "content-length: {}\r\n", self.length()),
            Framing::Chunked => write!(head, "transfer-encoding: chunked\r\n"),
            Framing::UntilClose | Framing::Raw => Ok(()),
        };
        head + "\r\n"
    }

    fn length(&self) -> usize {
        let of = |step: &Step| {
            if let Step::Bytes(bytes) = step {
                bytes.len()
            } else {
                0
            }
        };
        self.body.iter().map(of).sum()
    }
}
