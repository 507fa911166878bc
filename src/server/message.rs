//! The messages of a call on the wire: how many come, how large they are, and their packing.
//!
//! Must hold: a method that takes one message is not called with none, or with more than one; no
//! message is larger than its limit, unpacked; whatever breaks a rule says which. A message that
//! is not packed passes as it came, without a copy.
//!
//! It stands in for tonic's own checks: it drops what follows the first message, names a message
//! over the limit `OUT_OF_RANGE`, and packs answers whatever their size.

use std::{
    io::{self, Write as _},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use flate2::{
    Compression,
    write::{GzDecoder, GzEncoder},
};
use http::HeaderMap;
use http_body::{Body, Frame};
use tokio::time::{Sleep, sleep};
use tonic::{Code, Status};
use tower::BoxError;

use crate::{error::Error, shares::HeldPart};

/// Bytes before each message: whether it is packed, and its length.
const PREFIX: usize = 5;

/// What a call's messages may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// The largest message, in bytes, unpacked too.
    pub(super) limit: usize,
    /// What sets that limit.
    pub(super) flag: &'static str,
    /// The method takes one message.
    pub(super) one: bool,
    /// Messages may be packed.
    pub(super) packed: bool,
}

/// Takes the encoding of a request's messages: whether they may be packed.
pub(super) fn take_encoding(headers: &mut HeaderMap) -> Result<bool, Error> {
    match headers.remove("grpc-encoding") {
        None => Ok(false),
        Some(encoding) if encoding == "identity" => Ok(false),
        Some(encoding) if encoding == "gzip" => Ok(true),
        Some(_) => Err(Error::UnknownEncoding),
    }
}

/// Whether a caller understands packed answers.
pub(super) fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all("grpc-accept-encoding").iter();
    let mut names = accepted.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    names.any(|name| name.trim_ascii() == b"gzip")
}

/// A request's body, checked.
pub(super) struct Messages<B> {
    body: B,
    rules: Rules,
    at: At,
    count: u64,
    /// How many are whole.
    whole: u64,
    /// What was read before it was asked for.
    ahead: Ahead,
    /// What the message that comes, or came last, takes.
    held: HeldPart,
    size: usize,
    /// How long the first message may take, if that is for this body to say, and its timer.
    limit: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
}

/// What was read of a body before it was asked for: its first piece, which mostly is all of it, the
/// pieces behind that in one, however small each of them was, and its end.
#[derive(Default)]
struct Ahead {
    first: Bytes,
    rest: BytesMut,
    trailers: Option<Frame<Bytes>>,
}

impl Ahead {
    fn keep(&mut self, data: Bytes) {
        if self.first.is_empty() {
            self.first = data;
        } else {
            self.rest.extend_from_slice(&data);
        }
    }

    fn take(&mut self) -> Option<Frame<Bytes>> {
        if !self.first.is_empty() {
            return Some(Frame::data(std::mem::take(&mut self.first)));
        }
        if !self.rest.is_empty() {
            return Some(Frame::data(std::mem::take(&mut self.rest).freeze()));
        }
        self.trailers.take()
    }
}

/// Where in the body the next byte stands.
enum At {
    /// In a prefix, of which so many bytes came.
    Prefix([u8; PREFIX], usize),
    /// In a message of which so many bytes are to come.
    Plain(usize),
    /// The same, packed.
    Packed(usize, Box<GzDecoder<Bounded>>),
}

const START: At = At::Prefix([0; PREFIX], 0);

impl<B> Messages<B> {
    /// The messages of `body`. What they take is counted in `held`.
    pub(super) fn new(body: B, rules: Rules, held: HeldPart) -> Self {
        Self {
            body,
            rules,
            at: START,
            count: 0,
            whole: 0,
            ahead: Ahead::default(),
            held,
            size: 0,
            limit: None,
            timer: None,
        }
    }

    /// The first message has to be there within this time from when it was asked for.
    pub(super) fn within(&mut self, limit: Duration) {
        self.limit = Some(limit);
    }

    /// Takes over what the one message of a method takes, which outlives its bytes. Of methods that
    /// take many, what each takes is counted here, one after the other.
    pub(super) fn take_held(&mut self) -> HeldPart {
        if self.rules.one {
            std::mem::take(&mut self.held)
        } else {
            HeldPart::default()
        }
    }

    /// The same bytes, with messages unpacked.
    fn take(&mut self, data: Bytes) -> Result<Bytes, Error> {
        let data = if self.rules.packed {
            let mut out = BytesMut::new();
            self.walk(&data, Some(&mut out))?;
            out.freeze()
        } else {
            self.walk(&data, None)?;
            data
        };
        self.size += unfolded(&data);
        if self.size > self.held.bytes() {
            self.held.resize(self.size)?;
        }
        Ok(data)
    }

    fn walk(&mut self, mut data: &[u8], mut out: Option<&mut BytesMut>) -> Result<(), Error> {
        loop {
            match &mut self.at {
                At::Prefix(prefix, came) => {
                    if data.is_empty() {
                        return Ok(());
                    }
                    if self.rules.one && self.count > 0 {
                        return Err(Error::Malformed {
                            what: "more than one message, where the method takes one".into(),
                        });
                    }
                    let more = data.len().min(PREFIX - *came);
                    data.copy_to_slice(&mut prefix[*came..*came + more]);
                    *came += more;
                    if *came == PREFIX {
                        let prefix = *prefix;
                        self.begin(prefix, out.as_deref_mut())?;
                    }
                }
                At::Plain(left) => {
                    let now = data.len().min(*left);
                    if let Some(out) = out.as_deref_mut() {
                        out.put_slice(&data[..now]);
                    }
                    data.advance(now);
                    *left -= now;
                    if *left > 0 {
                        return Ok(());
                    }
                    self.at = START;
                    self.whole += 1;
                }
                At::Packed(left, unpacks) => {
                    let now = data.len().min(*left);
                    let written = unpacks.write_all(&data[..now]);
                    written.map_err(|error| self.rules.broken(&error))?;
                    data.advance(now);
                    *left -= now;
                    if *left > 0 {
                        return Ok(());
                    }
                    let ended = unpacks.try_finish();
                    ended.map_err(|error| self.rules.broken(&error))?;
                    let message = &unpacks.get_ref().bytes;
                    if let Some(out) = out.as_deref_mut() {
                        out.put_u8(0);
                        out.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
                        out.put_slice(message);
                    }
                    self.at = START;
                    self.whole += 1;
                }
            }
        }
    }

    /// A message begins.
    fn begin(&mut self, prefix: [u8; PREFIX], out: Option<&mut BytesMut>) -> Result<(), Error> {
        let [packed, length @ ..] = prefix;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > self.rules.limit {
            return Err(self.rules.too_large());
        }
        self.count += 1;
        // What is announced will be taken.
        self.size = 0;
        self.held.resize(length)?;
        self.at = match packed {
            0 => {
                if let Some(out) = out {
                    out.put_slice(&prefix);
                }
                At::Plain(length)
            }
            1 if self.rules.packed => {
                let bounded = Bounded {
                    bytes: Vec::new(),
                    limit: self.rules.limit,
                };
                At::Packed(length, Box::new(GzDecoder::new(bounded)))
            }
            1 => {
                return Err(Error::Malformed {
                    what: "a message is packed, and grpc-encoding does not say how".into(),
                });
            }
            _ => {
                return Err(Error::Malformed {
                    what: "a message's first byte is neither 0 nor 1".into(),
                });
            }
        };
        Ok(())
    }

    /// The body is over.
    fn end(&self) -> Result<(), Error> {
        let what = if !matches!(self.at, At::Prefix(_, 0)) {
            "the request ends in the middle of a message"
        } else if self.rules.one && self.count == 0 {
            "no message, where the method takes one"
        } else {
            return Ok(());
        };
        Err(Error::Malformed { what: what.into() })
    }
}

impl Rules {
    fn too_large(&self) -> Error {
        let Self { limit, flag, .. } = self;
        Error::TooLarge {
            what: format!("the message has more than {limit} bytes ({flag})"),
        }
    }

    fn broken(&self, error: &io::Error) -> Error {
        if error.kind() == io::ErrorKind::FileTooLarge {
            return self.too_large();
        }
        Error::Malformed {
            what: "a message is not what gzip gives".into(),
        }
    }
}

impl<B> Messages<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    /// Reads up to the end of the first message, or of the body. What was read is given when it is
    /// asked for.
    pub(super) fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        while self.whole == 0 && self.ahead.trailers.is_none() {
            match ready!(self.poll_next(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.ahead.keep(data),
                    Err(trailers) => self.ahead.trailers = Some(trailers),
                },
                Some(Err(error)) => return Poll::Ready(Err(Status::from_error(error))),
                None => break,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let refused = |error: Error| Poll::Ready(Some(Err(error.status().into())));
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                let status = Status::from_error(error.into());
                // tonic takes a reset for the end of the request, and calls the handler.
                let reset = self.rules.one && status.code() == Code::Cancelled;
                let status = if reset {
                    Status::aborted("the caller reset the call before it was whole")
                } else {
                    status
                };
                return Poll::Ready(Some(Err(status.into())));
            }
            None => return self.end().map_or_else(refused, |()| Poll::Ready(None)),
        };
        match frame.into_data() {
            Ok(data) => match self.take(data) {
                Ok(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
                Err(error) => refused(error),
            },
            Err(trailers) => match self.end() {
                Ok(()) => Poll::Ready(Some(Ok(trailers))),
                Err(error) => refused(error),
            },
        }
    }
}

impl<B> Body for Messages<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(read) = self.ahead.take() {
            return Poll::Ready(Some(Ok(read)));
        }
        if let Poll::Ready(read) = self.poll_next(cx) {
            return Poll::Ready(read);
        }
        let Some(limit) = self.limit.filter(|_| self.whole == 0) else {
            return Poll::Pending;
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(timer.as_mut().poll(cx));
        let error = Error::MessageTimeout { limit };
        Poll::Ready(Some(Err(error.status().into())))
    }
}

/// What bytes of a message take once it is unfolded, about. Text takes what it is, here and as
/// JSON. A field that holds little takes much more than its bytes: its length, or its number, is
/// one byte below 32, of which text has few.
fn unfolded(data: &[u8]) -> usize {
    const FIELD: usize = 192;
    let small = data.iter().filter(|byte| **byte < 32).count();
    2 * data.len() + FIELD * small
}

/// Bytes up to a limit.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Packs the messages of an answer that have more than `above` bytes, each by itself. What is not
/// whole messages passes as it is: handlers give whole ones.
pub(super) fn pack(data: Bytes, above: usize) -> Result<Bytes, Status> {
    let mut rest = &data[..];
    let mut out = BytesMut::new();
    while let Some((prefix, more)) = rest.split_at_checked(PREFIX) {
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some((message, more)) = more.split_at_checked(length) else {
            return Ok(data);
        };
        rest = more;
        if length <= above || prefix[0] != 0 {
            out.put_slice(prefix);
            out.put_slice(message);
            continue;
        }
        let at = out.len();
        out.put_slice(&[1, 0, 0, 0, 0]);
        let mut packs = GzEncoder::new(out.writer(), Compression::fast());
        let packed = packs.write_all(message).and_then(|()| packs.finish());
        out = packed
            .map_err(|_| Status::internal("the answer cannot be packed"))?
            .into_inner();
        let length = u32::try_from(out.len() - at - PREFIX).unwrap_or(u32::MAX);
        out[at + 1..at + PREFIX].copy_from_slice(&length.to_be_bytes());
    }
    Ok(if rest.is_empty() { out.freeze() } else { data })
}
