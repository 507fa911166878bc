//! Server-sent events framing, as the WHATWG's HTML standard defines it: bytes in chunks become
//! events.
//!
//! Must hold: any chunking gives the same frames; a frame is there as soon as its last byte is (a
//! blank line that ends in CR is not held back to see whether LF follows); the work is linear in
//! the bytes; what is held is bounded by a small multiple of the limit and the chunks that the
//! event being read lies in. No I/O, and no panic on any input. Bytes are passed on as they came,
//! UTF-8 or not: who reads the data judges it, and nothing is replaced.
//!
//! Where an event lies within one chunk, nothing of it is copied: its frame borrows from the chunk,
//! which is let go as soon as it is read. A line that comes in several is copied once. Not a crate,
//! since this is at the heart of the gateway and small: it needs the limit, the borrowing, and what
//! was pending at the end.

use std::{error::Error, fmt, mem, ops::Range};

use bytes::Bytes;
use memchr::memchr2;

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Frame<'a> {
    /// Its name; empty if the upstream gave none.
    pub event: &'a [u8],
    /// Its data lines, joined by LF.
    pub data: &'a [u8],
    /// The last id that the stream gave, by this event or an earlier one; empty if none.
    pub id: &'a [u8],
}

impl Frame<'_> {
    /// Whether its data are the mark that ends a stream.
    pub fn is_done(&self) -> bool {
        self.data.trim_ascii() == b"[DONE]"
    }
}

/// Whether a body that begins so is an event stream; `None` if more has to be read to know. Other
/// bodies begin like nothing that a stream can begin with.
pub(super) fn begins_stream(begun: &[u8]) -> Option<bool> {
    const FIELDS: [&[u8]; 4] = [b"data", b"event", b"id", b"retry"];
    let mark = b"\xEF\xBB\xBF";
    if begun.len() < mark.len() && mark.starts_with(begun) {
        return None;
    }
    let text = begun.strip_prefix(mark).unwrap_or(begun).trim_ascii_start();
    if text.is_empty() {
        return None;
    }
    let name = text
        .iter()
        .position(|byte| matches!(byte, b':' | b'\r' | b'\n'));
    match name {
        // A comment.
        Some(0) => Some(true),
        Some(end) => Some(FIELDS.contains(&&text[..end])),
        None if FIELDS.iter().any(|field| field.starts_with(text)) => None,
        None => Some(false),
    }
}

/// What was left when a stream ended without the blank line that ends an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending<'a> {
    /// The event so far, a line that was not ended included. Without data it would not have been an
    /// event in any case.
    pub frame: Frame<'a>,
    /// Its last line was ended. Otherwise that line, be it name or data, may have been cut
    /// anywhere.
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
/// # use runs_gateway::upstream::sse::Parser;
/// let mut parser = Parser::new(1 << 20);
/// parser.push("event: thread.run.created\ndata: {\"id\":\"ru".into());
/// assert_eq!(parser.next_frame(), Ok(None));
/// parser.push("n_1\"}\n\n".into());
/// assert_eq!(parser.next_frame().unwrap().unwrap().data, b"{\"id\":\"run_1\"}");
/// assert_eq!(parser.finish(), None);
/// ```
#[derive(Debug)]
pub struct Parser {
    limit: usize,
    /// The last chunk, and how far it is read.
    chunk: Bytes,
    at: usize,
    /// The beginning of a line whose end is in a later chunk.
    partial: Vec<u8>,
    /// The last line ended in CR: an LF that follows is the same line end.
    after_cr: bool,
    /// The last line ended an event, which was given and is to be cleared.
    ended: bool,
    lines: Lines,
}

/// What the lines have said: since the last event, but for `past_first` and `id`, which stay.
#[derive(Debug, Default)]
struct Lines {
    /// One line was read: a byte-order mark is one at the first line only.
    past_first: bool,
    /// There was a line other than comments.
    begun: bool,
    event: Held,
    data: Held,
    id: Vec<u8>,
}

/// A line, or a part of the event that is being read.
#[derive(Debug, Default)]
enum Held {
    #[default]
    Nothing,
    /// Where it lies in the chunk.
    Borrowed(Range<usize>),
    /// Behind so many bytes of these.
    Owned(Vec<u8>, usize),
}

impl Parser {
    /// A parser at the beginning of a stream. `limit` bounds, in bytes, each line, and the name and
    /// data of each event with the line that is being read.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            chunk: Bytes::new(),
            at: 0,
            partial: Vec::new(),
            after_cr: false,
            ended: false,
            lines: Lines::default(),
        }
    }

    /// Takes the next bytes of the stream. If [`Self::next_frame`] was not called until it gave
    /// `None`, they are copied to what is left.
    pub fn push(&mut self, chunk: Bytes) {
        self.forget();
        self.lines.own(&self.chunk);
        let rest = &self.chunk[self.at..];
        self.chunk = if rest.is_empty() {
            chunk
        } else {
            [rest, &chunk].concat().into()
        };
        self.at = 0;
    }

    /// The next event that is complete; `None` once all that was pushed is read. A stream that went
    /// beyond the limit stays failed.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, TooLong> {
        Ok(self.advance()?.then(|| self.frame()))
    }

    /// Reads on to the end of the next event, which then is [`Self::frame`]; false once all that
    /// was pushed is read.
    pub(super) fn advance(&mut self) -> Result<bool, TooLong> {
        self.forget();
        while !self.ended {
            if self.after_cr && self.at < self.chunk.len() {
                self.after_cr = false;
                self.at += usize::from(self.chunk[self.at] == b'\n');
            }
            let rest = &self.chunk[self.at..];
            // Every event ends in a blank line, and so this is often there.
            let end = if rest.first() == Some(&b'\n') {
                Some(0)
            } else {
                memchr2(b'\r', b'\n', rest)
            };
            let length = end.unwrap_or(rest.len());
            if self.partial.len() + self.lines.event.len() + self.lines.data.len() + length
                > self.limit
            {
                return Err(TooLong { limit: self.limit });
            }
            if end.is_none() || !self.partial.is_empty() {
                self.partial.extend_from_slice(&rest[..length]);
            }
            if end.is_none() {
                self.lines.own(&self.chunk);
                self.chunk = Bytes::new();
                self.at = 0;
                return Ok(false);
            }
            let line = self.at..self.at + length;
            self.at = line.end + 1;
            self.after_cr = self.chunk[line.end] == b'\r';
            let line = if self.partial.is_empty() {
                Held::Borrowed(line)
            } else {
                Held::Owned(mem::take(&mut self.partial), 0)
            };
            if self.lines.read(line, &self.chunk) {
                self.ended = self.lines.end();
            }
        }
        Ok(true)
    }

    /// What it holds, in bytes: the last chunk, and of the event that is being read or was given what
    /// does not lie in that.
    pub(super) fn held_bytes(&self) -> usize {
        let Lines { event, data, .. } = &self.lines;
        let owned = event.owned_len() + data.owned_len();
        self.chunk.len() + self.partial.capacity() + owned
    }

    /// Lets go of the event that was given.
    fn forget(&mut self) {
        if mem::take(&mut self.ended) {
            self.lines.clear();
        }
    }

    /// The event whose end was reached.
    pub(super) fn frame(&self) -> Frame<'_> {
        let Lines {
            event, data, id, ..
        } = &self.lines;
        Frame {
            event: event.of(&self.chunk),
            data: data.of(&self.chunk),
            id,
        }
    }

    /// Ends the stream. The standard drops what is then pending (`Some` if there was more than
    /// comments after the last blank line), and after a cut that is right. But some services leave
    /// out the last blank line, or even the last line end; the caller knows whether the stream
    /// ended in good order, and whether what is pending makes sense.
    pub fn finish(&mut self) -> Option<Pending<'_>> {
        self.forget();
        let terminated = self.partial.is_empty() && self.at == self.chunk.len();
        let partial = Held::Owned(mem::take(&mut self.partial), 0);
        self.lines.read(partial, &self.chunk);
        self.lines.begun.then(|| Pending {
            frame: self.frame(),
            terminated,
        })
    }
}

impl Lines {
    /// Reads a line; true if it is the blank one that ends an event.
    fn read(&mut self, mut line: Held, chunk: &[u8]) -> bool {
        if !mem::replace(&mut self.past_first, true) && line.of(chunk).starts_with(b"\xEF\xBB\xBF")
        {
            line = line.behind(3);
        }
        let text = line.of(chunk);
        if text.is_empty() {
            return true;
        }
        // Names are short, and so found sooner byte by byte.
        let colon = text
            .iter()
            .position(|byte| *byte == b':')
            .unwrap_or(text.len());
        let begin = match text.get(colon + 1) {
            None => text.len(),
            Some(b' ') => colon + 2,
            Some(_) => colon + 1,
        };
        self.begun |= colon > 0;
        match &text[..colon] {
            b"data" => self.data.join(line.behind(begin), chunk),
            b"event" => self.event = line.behind(begin),
            b"id" if !text[begin..].contains(&0) => self.id = text[begin..].to_vec(),
            // A comment, a field that the standard does not know, or `retry`: nothing here
            // reconnects.
            _ => {}
        }
        false
    }

    /// Ends the event at its blank line. Without data it was none.
    fn end(&mut self) -> bool {
        self.begun = false;
        let is_event = !matches!(self.data, Held::Nothing);
        if !is_event {
            self.clear();
        }
        is_event
    }

    fn clear(&mut self) {
        self.event = Held::Nothing;
        self.data = Held::Nothing;
    }

    /// Copies what lies in the chunk, which is let go.
    fn own(&mut self, chunk: &[u8]) {
        for held in [&mut self.event, &mut self.data] {
            if let Held::Borrowed(_) = held {
                *held = Held::Owned(held.of(chunk).to_vec(), 0);
            }
        }
    }
}

impl Held {
    /// What is behind its first `skipped` bytes.
    fn behind(self, skipped: usize) -> Self {
        match self {
            Self::Nothing => Self::Nothing,
            Self::Borrowed(range) => Self::Borrowed(range.start + skipped..range.end),
            Self::Owned(bytes, begin) => Self::Owned(bytes, begin + skipped),
        }
    }

    fn of<'a>(&'a self, chunk: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Nothing => &[],
            Self::Borrowed(range) => &chunk[range.clone()],
            Self::Owned(bytes, begin) => &bytes[*begin..],
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Borrowed(range) => range.len(),
            Self::Owned(bytes, begin) => bytes.len() - begin,
        }
    }

    /// What it takes that does not lie in the chunk.
    fn owned_len(&self) -> usize {
        match self {
            Self::Nothing | Self::Borrowed(_) => 0,
            Self::Owned(bytes, _) => bytes.capacity(),
        }
    }

    /// Adds a line of data.
    fn join(&mut self, value: Self, chunk: &[u8]) {
        let (mut lines, begin) = match mem::take(self) {
            Self::Nothing => {
                *self = value;
                return;
            }
            Self::Borrowed(range) => (chunk[range].to_vec(), 0),
            Self::Owned(lines, begin) => (lines, begin),
        };
        lines.push(b'\n');
        lines.extend_from_slice(value.of(chunk));
        *self = Self::Owned(lines, begin);
    }
}
