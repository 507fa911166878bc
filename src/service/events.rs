//! The events of a streaming call, as the body of its answer.
//!
//! Must hold: nothing of an event is kept once it was passed on. tonic's own encoder keeps a buffer
//! as large as the largest event for as long as the stream lives, and streams are quiet for most of
//! their lives.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame};
use tokio_stream::Stream;
use tonic::{Code, Status, metadata::MetadataMap};

use crate::{
    runs::{StreamedEvent, StreamedEvents},
    server::EncodedBody,
    telemetry,
    v1::RunEvent,
    wire::Wire as _,
};

/// How much goes out together, in bytes: with one more event of the usual size it is no more than the
/// HTTP library is given at a time.
const TOGETHER: usize = 14 << 10;

/// Bytes before each message: that it is not packed, and its length.
const PREFIX: usize = 5;

/// The answer of a streaming call, as tonic sees it. Its events go out by an [`EncodedBody`], so
/// there are none in it.
#[derive(Debug)]
pub struct RunEvents(());

impl Stream for RunEvents {
    type Item = Result<RunEvent, Status>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(None)
    }
}

/// An answer of these events, and of headers that the caller may see.
pub(super) fn answer(
    events: StreamedEvents,
    headers: HeaderMap,
    call: telemetry::Call,
) -> tonic::Response<RunEvents> {
    let mut extensions = http::Extensions::new();
    extensions.insert(EncodedBody::new(EventBody {
        events: Some(events),
        call,
        trailers: None,
    }));
    let metadata = MetadataMap::from_headers(headers);
    tonic::Response::from_parts(metadata, RunEvents(()), extensions)
}

/// Events as messages. What is sent is counted.
struct EventBody {
    /// `None` after the last one.
    events: Option<StreamedEvents>,
    call: telemetry::Call,
    /// The end, which is still to be told.
    trailers: Option<HeaderMap>,
}

impl EventBody {
    fn end(&mut self, status: Status) {
        self.events = None;
        let mut trailers = status.into_http::<()>().into_parts().0.headers;
        trailers.remove(http::header::CONTENT_TYPE);
        self.trailers = Some(trailers);
    }
}

impl Body for EventBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let mut out = BytesMut::new();
        while let Some(events) = &mut this.events
            && out.len() < TOGETHER
        {
            match events.as_mut().poll_next(cx) {
                Poll::Pending if out.is_empty() => return Poll::Pending,
                Poll::Pending => break,
                Poll::Ready(Some(Ok(event))) => {
                    this.call.sent(event.kind(), event.run());
                    if let Err(status) = put(&event, &mut out) {
                        this.end(status);
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    this.call.failed(&error);
                    this.end(error.status());
                }
                Poll::Ready(None) => this.end(Status::new(Code::Ok, "")),
            }
        }
        if !out.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(out.freeze()))));
        }
        Poll::Ready(
            this.trailers
                .take()
                .map(|trailers| Ok(Frame::trailers(trailers))),
        )
    }
}

/// Writes an event behind its prefix.
fn put(event: &StreamedEvent, out: &mut BytesMut) -> Result<(), Status> {
    let begin = out.len();
    out.put_bytes(0, PREFIX);
    event.parts(|part| out.put_slice(part));
    let length = u32::try_from(out.len() - begin - PREFIX);
    let length = length.map_err(|_| Status::resource_exhausted("an event of 4 GiB or more"))?;
    out[begin + 1..begin + PREFIX].copy_from_slice(&length.to_be_bytes());
    Ok(())
}
