//! Event streams of the upstream: opening one, and reading its frames.
//!
//! Must hold: event streams go over a client of their own, HTTP/1.1 only, one connection per live
//! stream. On a shared HTTP/2 connection a stream that nobody reads stalls all others. There is no
//! total and no read timeout: both would end streams whose reader is slow. Bytes are read from the
//! upstream only when the next frame is asked for, so a slow reader slows its own upstream and
//! nothing else.

use std::{
    fmt,
    future::poll_fn,
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::{
    answer::{self, Answer, Reading},
    caller::Caller,
    client::Client,
    error_body::without_mark,
    failure,
    isolation::Allowed,
    marks,
    request::Request,
    sse::{self, Frame, Parser, TooLong},
};
use crate::{
    error::{Error, Idempotency},
    json,
    registered_waker::RegisteredWaker,
    shares::{HeldPart, Limit},
    telemetry::UpstreamRequest,
    v1::Run,
};

/// What a request for a stream gave.
#[derive(Debug)]
pub enum UpstreamReply {
    /// The stream, and headers of its head that the caller may see.
    Stream(Box<EventStream>, HeaderMap),
    /// The run alone: the upstream does not stream.
    Run(Box<Answer<Run>>),
}

/// An event stream of the upstream. Dropping it closes its connection.
pub struct EventStream {
    response: reqwest::Response,
    parser: Parser,
    /// Nothing but white space was read.
    is_blank: bool,
    /// What was read of a body that is no event stream, but JSON: a run, or an error.
    document: Option<BytesMut>,
    /// The most bytes of an event, or of that.
    max_event_bytes: usize,
    /// The body came to its end.
    over: bool,
    /// The data of an event that showed one.
    unmarked: Vec<u8>,
    idle_timer: IdleTimer,
    upstream_request: UpstreamRequest,
    /// What the parser holds.
    held: HeldPart,
}

/// A time longer than this is longer than some clock goes.
const LONGEST_IDLE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Sees how long reads wait. The timer is set once for many reads: when it fires, it is
/// set again to the end of the read that waits then.
#[derive(Default)]
struct IdleTimer {
    /// When the wait that is under way is over.
    until: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    /// When it fires. Asked here and not of the timer, whose memory is seldom at hand: there are
    /// many streams, and each event comes alone.
    fires: Option<Instant>,
    registered: RegisteredWaker,
}

/// What a request for a stream gave.
pub(super) enum Opened<W> {
    Stream(Box<EventStream>, HeaderMap),
    Whole(W),
}

impl From<Opened<Box<Answer<Run>>>> for UpstreamReply {
    fn from(opened: Opened<Box<Answer<Run>>>) -> Self {
        match opened {
            Opened::Stream(stream, headers) => Self::Stream(stream, headers),
            Opened::Whole(run) => Self::Run(run),
        }
    }
}

/// What a request for a stream gives where the upstream does not stream.
pub(super) trait WholeAnswer: Sized {
    /// Reads an answer to its end. What was read of its body before is `begun`.
    fn read(
        response: &mut reqwest::Response,
        begun: Bytes,
        reading: &Reading<'_>,
    ) -> impl Future<Output = Result<Self, Error>> + Send;
}

impl WholeAnswer for Box<Answer<Run>> {
    async fn read(
        response: &mut reqwest::Response,
        begun: Bytes,
        reading: &Reading<'_>,
    ) -> Result<Self, Error> {
        answer::read(response, begun, reading).await.map(Box::new)
    }
}

/// What is there once the head is: of a stream the head, and what was read of its body to know it.
enum Head<W> {
    Stream(reqwest::Response, Bytes),
    Whole(W),
}

impl fmt::Debug for EventStream {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("EventStream").finish_non_exhaustive()
    }
}

/// Why a stream ended before its end.
#[derive(Debug)]
pub struct StreamBroken(pub String);

impl Client {
    /// Sends a request whose body asks for a stream. The status of the answer is awaited, so an
    /// error comes before any event.
    pub(super) async fn open(
        &self,
        caller: &Caller,
        request: Request,
    ) -> Result<UpstreamReply, Error> {
        // Boxed, since it would make every call that streams large.
        Box::pin(self.open_any(caller, request))
            .await
            .map(Into::into)
    }

    /// The same, of whatever the upstream answers with in place of a stream.
    pub(super) async fn open_any<W: WholeAnswer>(
        &self,
        caller: &Caller,
        request: Request,
    ) -> Result<Opened<W>, Error> {
        let request = self.allow(caller, request).await?;
        self.retry
            .run(caller, |attempt| self.open_once(caller, &request, attempt))
            .await
    }

    pub(super) async fn open_once<W: WholeAnswer>(
        &self,
        caller: &Caller,
        request: &Allowed,
        attempt: u32,
    ) -> Result<Opened<W>, Error> {
        let idempotency = request.idempotency;
        // It is let go with the head: a live stream has a place of its own, for as long as it
        // lives.
        let mut permit = self.admission.enter(caller.owner).await?;
        permit.sends(idempotency);
        let mut upstream_request = self.note(caller, request, attempt);
        let mut id = None;
        let sent = Instant::now();
        let head = async {
            let sending = {
                let mut http = self.request(caller, request);
                http.headers_mut().insert(
                    header::ACCEPT,
                    HeaderValue::from_static("text/event-stream"),
                );
                upstream_request.inject(http.headers_mut());
                self.transport.get().streams.execute(http)
            };
            let mut response = sending
                .await
                .map_err(|error| failure::lost(&error, idempotency))?;
            upstream_request.answered(response.status());
            id = answer::request_id(response.headers()).map(str::to_owned);
            let mut begun = Bytes::new();
            if response.status().is_success() {
                answer::check_encoding(&response)?;
                if is_event_stream(&mut response, &mut begun)
                    .await
                    .map_err(|error| failure::cut(&error, idempotency))?
                {
                    return Ok(Head::Stream(response, begun));
                }
            }
            let reading = self.reading(caller, request, sent);
            Ok(Head::Whole(W::read(&mut response, begun, &reading).await?))
        };
        let head = timeout(self.answer_timeout, head).await;
        permit.over();
        let head =
            head.unwrap_or_else(|_| Err(failure::timed_out(self.answer_timeout, idempotency)));
        upstream_request.ended(&head);
        caller.call.answered(id.as_deref());
        caller.answered(head.as_ref().err());
        if let Some(isolation) = &self.isolation {
            isolation.answered(request, head.as_ref().err());
        }
        Ok(match head.map_err(|error| error.of_request(id))? {
            Head::Stream(response, begun) => {
                let headers = answer::shown(response.headers());
                let mut parser = Parser::new(self.max_event_bytes);
                let is_blank = begun.is_empty();
                parser.push(begun);
                let stream = Box::new(EventStream {
                    response,
                    parser,
                    is_blank,
                    document: None,
                    max_event_bytes: self.max_event_bytes,
                    over: false,
                    unmarked: Vec::new(),
                    idle_timer: IdleTimer::default(),
                    upstream_request,
                    held: caller.held.part(),
                });
                Opened::Stream(stream, headers)
            }
            Head::Whole(answer) => Opened::Whole(answer),
        })
    }
}

impl Client {
    /// The error that an event of the upstream's says, told to whoever has to mend it. What the
    /// stream was asked for by may be repeated as `idempotency` says.
    pub fn failed_by_event(&self, data: &[u8], idempotency: Idempotency) -> Error {
        let mut error = answer::error_event(data, self.own_key);
        if let Error::Rejected(rejection) = &mut error {
            rejection.idempotency = idempotency;
            if let Some(body) = &mut rejection.body {
                self.secrets.hide(body);
            }
        }
        self.telemetry.failed(&error);
        error
    }
}

/// No event stream begins with more white space, in bytes.
const MAX_BLANK: usize = 64 << 10;

/// Whether a body is an event stream: by its type or, since some upstreams give none or a wrong
/// one, by how it begins. What is read of it for that is `begun`.
async fn is_event_stream(
    response: &mut reqwest::Response,
    begun: &mut Bytes,
) -> Result<bool, reqwest::Error> {
    let named = answer::content_type(response)
        .trim_start()
        .get(..17)
        .is_some_and(|kind| kind.eq_ignore_ascii_case("text/event-stream"));
    loop {
        match if named {
            Some(true)
        } else {
            sse::begins_stream(begun)
        } {
            Some(is_stream) => return Ok(is_stream),
            None if begun.len() > MAX_BLANK => return Ok(false),
            None => match response.chunk().await? {
                Some(chunk) if begun.is_empty() => *begun = chunk,
                Some(chunk) => *begun = [&begun[..], &chunk].concat().into(),
                None => return Ok(false),
            },
        }
    }
}

impl EventStream {
    /// The next frame; `None` at the end of the body. An upstream that is silent for `idle` counts
    /// as cut. Whatever it says breaks its `idle_timer`, a comment too, and no time passes while
    /// nobody reads. May be dropped while it waits: nothing is lost.
    pub async fn next(&mut self, idle: Duration) -> Result<Option<Frame<'_>>, StreamBroken> {
        while !self
            .parser
            .advance()
            .map_err(|error| StreamBroken(error.to_string()))?
        {
            if self.over {
                return Ok(None);
            }
            let Some(chunk) = self.idle_timer.within(idle, self.response.chunk()).await else {
                return Err(StreamBroken(format!(
                    "the upstream said nothing for {idle:?}"
                )));
            };
            self.over = !matches!(chunk, Ok(Some(_)));
            match chunk {
                Ok(Some(chunk)) => self.push(chunk)?,
                // Some services leave out the last blank line. What is then pending counts if it is
                // whole.
                Ok(None) => {
                    let pending = match &self.document {
                        Some(document) => Some(Frame {
                            data: without_mark(document),
                            ..Frame::default()
                        }),
                        None => self.parser.finish().map(|pending| pending.frame),
                    };
                    let is_whole =
                        |frame: &Frame<'_>| frame.is_done() || json::is_whole(frame.data);
                    return Ok(pending
                        .filter(is_whole)
                        .map(|frame| shown(frame, &mut self.unmarked)));
                }
                Err(error) => {
                    self.upstream_request.broke();
                    return Err(StreamBroken(failure::why(&error)));
                }
            }
        }
        let frame = self.parser.frame();
        Ok(Some(shown(frame, &mut self.unmarked)))
    }

    /// Takes a piece of the body. No line of an event stream begins as JSON does: a body that begins
    /// so is one document, which is there when the body is over.
    fn push(&mut self, chunk: Bytes) -> Result<(), StreamBroken> {
        if self.is_blank {
            let text = without_mark(&chunk).trim_ascii_start();
            self.is_blank = text.is_empty();
            if matches!(text.first(), Some(b'{' | b'[')) {
                self.document = Some(BytesMut::new());
            }
        }
        let limit = self.max_event_bytes;
        match &mut self.document {
            Some(document) if document.len() + chunk.len() > limit => {
                return Err(StreamBroken(TooLong { limit }.to_string()));
            }
            Some(document) => document.extend_from_slice(&chunk),
            None => self.parser.push(chunk),
        }
        let document = self.document.as_ref().map_or(0, BytesMut::len);
        let held = self.held.resize(self.parser.held_bytes() + document);
        held.map_err(|Limit { flag, .. }| {
            StreamBroken(format!("there is no room for its event ({flag})"))
        })
    }
}

/// The frame as a caller sees it. If it has to change, its data are then in `unmarked`.
fn shown<'a>(frame: Frame<'a>, unmarked: &'a mut Vec<u8>) -> Frame<'a> {
    if !marks::may_be_in(frame.data) {
        return frame;
    }
    *unmarked = marks::hidden(frame.data);
    Frame {
        data: unmarked,
        ..frame
    }
}

impl IdleTimer {
    /// What is read, unless that takes longer than `idle`. Dropped while it waits and asked for anew,
    /// it goes on to wait.
    async fn within<T>(&mut self, idle: Duration, read: impl Future<Output = T>) -> Option<T> {
        let mut read = pin!(read);
        poll_fn(|cx| {
            if let Poll::Ready(read) = read.as_mut().poll(cx) {
                self.until = None;
                return Poll::Ready(Some(read));
            }
            let now = Instant::now();
            let until = *self
                .until
                .get_or_insert_with(|| now + idle.min(LONGEST_IDLE));
            // It never fires too late: no read that came before this one could wait longer.
            if self.fires.is_some_and(|fires| now < fires) && self.registered.is(cx) {
                return Poll::Pending;
            }
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(sleep_until(until)));
            while self.registered.poll(timer.as_mut(), cx).is_ready() {
                if Instant::now() >= until {
                    return Poll::Ready(None);
                }
                timer.as_mut().reset(until);
            }
            self.fires = Some(timer.deadline());
            Poll::Pending
        })
        .await
    }
}
