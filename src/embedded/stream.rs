//! Event streams: what happens to a run, as server-sent events.
//!
//! Must hold: a reader that is slow or gone holds nobody up. What waits for a slow reader is one
//! round of one run, which the model bounds: hence a queue without a limit. A stream ends in `done`,
//! or, if the run was taken away under it, in an `error` event.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse, Response},
};
use http_body::Frame;
use tokio::sync::mpsc;

use super::{error::Error, rows::Row};
use crate::json;

/// Where the events of a round go; nowhere, unless somebody asked for them.
#[derive(Debug, Default)]
pub(super) struct Events(Option<mpsc::UnboundedSender<Bytes>>);

/// The body of an answer that is an event stream.
pub(super) struct EventStream {
    events: mpsc::UnboundedReceiver<Bytes>,
    ended: bool,
}

const DONE: &[u8] = b"event: done\ndata: [DONE]\n\n";

impl Events {
    /// Events, and the stream that they come out of.
    pub(super) fn stream() -> (Self, EventStream) {
        let (to, events) = mpsc::unbounded_channel();
        (
            Self(Some(to)),
            EventStream {
                events,
                ended: false,
            },
        )
    }

    /// Sends an event whose data are this row.
    pub(super) fn send(&mut self, name: &str, row: &Row) {
        let Some(to) = &self.0 else { return };
        let data = match row {
            Row::Thread(row) => json::encode(row),
            Row::Message(row) => json::encode(row),
            Row::MessageDelta(row) => json::encode(row),
            Row::Run(row) => json::encode(&**row),
            Row::Step(row) => json::encode(&**row),
            Row::StepDelta(row) => json::encode(row),
            // Callers do not see these.
            Row::DeletedMessage(_) | Row::Progress(_) => return,
        };
        let Ok(data) = data else {
            // What cannot be written cannot have been read. The stream ends in an error.
            self.0 = None;
            return;
        };
        // Fails only if the reader is gone, which does not stop a run.
        let _ = to.send(frame(name, &data));
    }

    /// Ends the round.
    pub(super) fn done(&mut self) {
        if let Some(to) = self.0.take() {
            let _ = to.send(Bytes::from_static(DONE));
        }
    }
}

/// An event as it is sent: a `data:` line for each line of its data. Raw JSON that callers send may
/// have line ends between its tokens, and each of the three kinds would end the line.
fn frame(name: &str, data: &[u8]) -> Bytes {
    let mut frame = format!("event: {name}\n").into_bytes();
    let mut rest = Some(data);
    while let Some(text) = rest {
        let end = text.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
        let (line, after) = text.split_at(end.unwrap_or(text.len()));
        frame.extend(b"data: ");
        frame.extend(line);
        frame.push(b'\n');
        rest = end.map(|_| after.strip_prefix(b"\r\n").unwrap_or(&after[1..]));
    }
    frame.push(b'\n');
    frame.into()
}

impl http_body::Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let event = ready!(self.events.poll_recv(context));
        self.ended = event.as_deref().is_none_or(|event| event == DONE);
        let event = event.unwrap_or_else(|| {
            let error = json::encode(&*Error::internal().error).unwrap_or_default();
            frame("error", &error)
        });
        Poll::Ready(Some(Ok(Frame::data(event))))
    }
}

impl IntoResponse for EventStream {
    fn into_response(self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
            (header::CACHE_CONTROL, "no-cache"),
        ];
        (headers, Body::new(self)).into_response()
    }
}
