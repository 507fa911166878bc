//! Server-sent events framing, as the WHATWG's HTML standard defines it: bytes in chunks become events.
//!
//! Must hold: any chunking gives the same frames; a frame is there as soon as its last byte is (a blank line that ends in CR is not held
//! back to see whether LF follows); the work is linear in the bytes; what is held is bounded by a small multiple of the limit and the
//! chunks that the event being read lies in. No I/O, and no panic on any input. Bytes are passed on as they came, UTF-8 or not: who reads
//! the data judges it, and nothing is replaced.
//!
//! Where an event's data is one line within one chunk it is a slice of that chunk, which therefore lives as long as the frame does.
//! Not a crate, since this is at the heart of the gateway and small: it needs the limit, the slices, and what was pending at the end.

use std::{error::Error, fmt, mem, ops::Range};

use bytes::{Bytes, BytesMut};
use memchr::memchr2;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frame {
    /// Its name; empty if the upstream gave none.
    pub event: Bytes,
    /// Its data lines, joined by LF.
    pub data: Bytes,
    /// The last id that the stream gave, by this event or an earlier one; empty if none.
    pub id: Bytes,
}

/// What was left when a stream ended without the blank line that ends an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// The event so far, a line that was not ended included. Without data it would not have been an event in any case.
    pub frame: Frame,
    /// Its last line was ended. Otherwise that line, be it name or data, may have been cut anywhere.
    pub terminated: bool,
}

/// A line, or the lines of one event together, went beyond the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong {
    /// The limit, in bytes.
    pub limit: usize,
}

impl fmt::Display for TooLong {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "an event of more than {} bytes", self.limit)
    }
}

impl Error for TooLong {}

/// Frames one event stream.
///
/// ```
/// # use runs_gateway::rest::sse::Parser;
/// let mut parser = Parser::new(1 << 20);
/// parser.push("event: thread.run.created\ndata: {\"id\":\"ru".into());
/// assert_eq!(parser.next_frame(), Ok(None));
/// parser.push("n_1\"}\n\n".into());
/// assert_eq!(parser.next_frame().unwrap().unwrap().data, "{\"id\":\"run_1\"}");
/// assert_eq!(parser.finish(), None);
/// ```
#[derive(Debug)]
pub struct Parser {
    limit: usize,
    /// The last chunk, and how far it is read.
    chunk: Bytes,
    at: usize,
    /// The beginning of a line whose end is in a later chunk.
    partial: BytesMut,
    /// The last line ended in CR: an LF that follows is the same line end.
    after_cr: bool,
    lines: Lines,
}

/// What the lines have said: since the last event, but for `past_first` and `id`, which stay.
#[derive(Debug, Default)]
struct Lines {
    /// One line was read: a byte-order mark is one at the first line only.
    past_first: bool,
    /// There was a line other than comments.
    begun: bool,
    event: Bytes,
    data: Data,
    id: Bytes,
}

#[derive(Debug, Default)]
enum Data {
    #[default]
    None,
    Line(Bytes),
    Lines(BytesMut),
}

impl Parser {
    /// A parser at the beginning of a stream. `limit` bounds, in bytes, each line, and the name and data of each event with the line
    /// that is being read.
    pub fn new(limit: usize) -> Self {
        Self { limit, chunk: Bytes::new(), at: 0, partial: BytesMut::new(), after_cr: false, lines: Lines::default() }
    }

    /// Takes the next bytes of the stream. If [`Self::next_frame`] was not called until it gave `None`, they are copied to what is left.
    pub fn push(&mut self, chunk: Bytes) {
        let left = &self.chunk[self.at..];
        self.chunk = if left.is_empty() { chunk } else { [left, &chunk].concat().into() };
        self.at = 0;
    }

    /// The next event that is complete; `None` once all that was pushed is read. A stream that went beyond the limit stays failed.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, TooLong> {
        loop {
            if self.after_cr && self.at < self.chunk.len() {
                self.after_cr = false;
                self.at += usize::from(self.chunk[self.at] == b'\n');
            }
            let left = &self.chunk[self.at..];
            // Every event ends in a blank line, and so this is often there.
            let end = if left.first() == Some(&b'\n') { Some(0) } else { memchr2(b'\r', b'\n', left) };
            let length = end.unwrap_or(left.len());
            if self.partial.len() + self.lines.event.len() + self.lines.data.len() + length > self.limit {
                return Err(TooLong { limit: self.limit });
            }
            if end.is_none() || !self.partial.is_empty() {
                self.partial.extend_from_slice(&left[..length]);
            }
            if end.is_none() {
                self.chunk = Bytes::new();
                self.at = 0;
                return Ok(None);
            }
            let line = self.at..self.at + length;
            self.at = line.end + 1;
            self.after_cr = self.chunk[line.end] == b'\r';
            let blank = if self.partial.is_empty() {
                self.lines.read(&self.chunk, line)
            } else {
                let line = mem::take(&mut self.partial).freeze();
                self.lines.read(&line, 0..line.len())
            };
            if blank && let Some(frame) = self.lines.end() {
                return Ok(Some(frame));
            }
        }
    }

    /// Ends the stream. The standard drops what is then pending (`Some` if there was more than comments after the last blank line), and
    /// after a cut that is right. But some services leave out the last blank line, or even the last line end; the caller knows whether the
    /// stream ended in good order, and whether what is pending makes sense.
    pub fn finish(self) -> Option<Pending> {
        let Self { chunk, at, partial, mut lines, .. } = self;
        let terminated = partial.is_empty() && at == chunk.len();
        let partial = partial.freeze();
        lines.read(&partial, 0..partial.len());
        let frame = Frame { event: lines.event, data: lines.data.joined().unwrap_or_default(), id: lines.id };
        lines.begun.then_some(Pending { frame, terminated })
    }
}

impl Lines {
    /// Reads the line that lies in `of`; true if it is the blank one that ends an event.
    fn read(&mut self, of: &Bytes, mut at: Range<usize>) -> bool {
        if !mem::replace(&mut self.past_first, true) && of[at.clone()].starts_with(b"\xEF\xBB\xBF") {
            at.start += 3;
        }
        let line = &of[at.clone()];
        if line.is_empty() {
            return true;
        }
        // Names are short, and so found sooner byte by byte.
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let value = match line.get(colon + 1) {
            None => line.len(),
            Some(b' ') => colon + 2,
            Some(_) => colon + 1,
        };
        self.begun |= colon > 0;
        match &line[..colon] {
            b"data" => self.data.push(of.slice(at.start + value..at.end)),
            b"event" => self.event = of.slice(at.start + value..at.end),
            // Copied, since it outlives its chunk.
            b"id" if !line[value..].contains(&0) => self.id = Bytes::copy_from_slice(&line[value..]),
            // A comment, a field that the standard does not know, or `retry`: nothing here reconnects.
            _ => {}
        }
        false
    }

    /// Ends the event at its blank line. Without data it was none.
    fn end(&mut self) -> Option<Frame> {
        self.begun = false;
        let event = mem::take(&mut self.event);
        let data = mem::take(&mut self.data).joined()?;
        Some(Frame { event, data, id: self.id.clone() })
    }
}

impl Data {
    fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Line(line) => line.len(),
            Self::Lines(lines) => lines.len(),
        }
    }

    fn push(&mut self, line: Bytes) {
        let mut lines = match mem::take(self) {
            Self::None => {
                *self = Self::Line(line);
                return;
            }
            Self::Line(first) => BytesMut::from(&first[..]),
            Self::Lines(lines) => lines,
        };
        lines.extend_from_slice(b"\n");
        lines.extend_from_slice(&line);
        *self = Self::Lines(lines);
    }

    fn joined(self) -> Option<Bytes> {
        match self {
            Self::None => None,
            Self::Line(line) => Some(line),
            Self::Lines(lines) => Some(lines.freeze()),
        }
    }
}
