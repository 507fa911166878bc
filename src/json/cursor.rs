//! A cursor over JSON text that checks the grammar as it goes.
//!
//! Must hold: a value that was skipped or read was valid JSON to its last byte, as `serde_json`
//! judges it (a property test compares the two); every method either moves past what it names or
//! stops; nothing is allocated but for strings with escapes. A cursor that stopped is not read on.

use std::{borrow::Cow, fmt, mem};

use super::{MAX_DEPTH, MAX_UNFOLDED};

/// Text that is not JSON, or that goes beyond a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// What is wrong.
    pub what: &'static str,
    /// Where, in bytes from the beginning.
    pub at: usize,
}

impl fmt::Display for Malformed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} at byte {}", self.what, self.at)
    }
}

impl std::error::Error for Malformed {}

/// Reading came to something that is not JSON or goes beyond a limit: [`Cursor::why`] tells.
/// Without a size, so that results stay in registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stopped;

pub(crate) type Read<T> = Result<T, Stopped>;

/// A JSON string as it stands in the text, between its quotes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token<'a> {
    raw: &'a str,
    escaped: bool,
}

impl<'a> Token<'a> {
    /// The string. `None` if an escape stands for half a surrogate pair: such a string has no
    /// UTF-8.
    pub(super) fn text(self) -> Option<Cow<'a, str>> {
        if self.escaped {
            String::from_utf8(unescape(self.raw)).ok().map(Cow::Owned)
        } else {
            Some(Cow::Borrowed(self.raw))
        }
    }

    /// The string's bytes, half surrogate pairs in the generalized UTF-8 that is called WTF-8:
    /// equal iff the strings are.
    pub(super) fn bytes(self) -> Cow<'a, [u8]> {
        if self.escaped {
            Cow::Owned(unescape(self.raw))
        } else {
            Cow::Borrowed(self.raw.as_bytes())
        }
    }

    /// The text between the quotes, escapes and all.
    pub(super) fn raw(self) -> &'a str {
        self.raw
    }
}

pub(crate) struct Cursor<'a> {
    text: &'a str,
    at: usize,
    depth: u8,
    unfolded: usize,
    /// A list or an object was entered, and nothing of it was looked for yet.
    first: bool,
    /// What it stopped at.
    stop: Option<Malformed>,
}

/// A place to go back to.
#[derive(Clone, Copy)]
pub(crate) struct Mark {
    at: usize,
    depth: u8,
    unfolded: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(text: &'a [u8]) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(text).map_err(|error| Malformed {
            what: "not UTF-8",
            at: error.valid_up_to(),
        })?;
        Ok(Self {
            text,
            at: 0,
            depth: 0,
            unfolded: 0,
            first: false,
            stop: None,
        })
    }

    #[cold]
    fn stop(&mut self, what: &'static str, at: usize) -> Stopped {
        self.stop = Some(Malformed { what, at });
        Stopped
    }

    /// Stops here.
    #[cold]
    pub(super) fn malformed(&mut self, what: &'static str) -> Stopped {
        self.stop(what, self.at)
    }

    /// What it stopped at.
    pub(super) fn why(self, _: Stopped) -> Malformed {
        self.stop.unwrap_or(Malformed {
            what: "not JSON",
            at: self.at,
        })
    }

    /// The first byte of the next token; 0 at the end of the text.
    #[inline]
    pub(super) fn peek(&mut self) -> u8 {
        match self.text.as_bytes().get(self.at) {
            Some(byte) if *byte > b' ' => *byte,
            _ => self.peek_on(),
        }
    }

    /// The same, past white space.
    #[cold]
    fn peek_on(&mut self) -> u8 {
        let rest = &self.text.as_bytes()[self.at..];
        let white = rest
            .iter()
            .take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r'))
            .count();
        self.at += white;
        rest.get(white).copied().unwrap_or_default()
    }

    /// Nothing but white space is left.
    pub(super) fn end(&mut self) -> Read<()> {
        if self.peek() == 0 && self.at == self.text.len() {
            Ok(())
        } else {
            Err(self.malformed("more than one value"))
        }
    }

    /// A place to go back to.
    pub(crate) fn mark(&self) -> Mark {
        Mark {
            at: self.at,
            depth: self.depth,
            unfolded: self.unfolded,
        }
    }

    /// Goes back. Whatever was read since is to be dropped, and does not count any more.
    pub(crate) fn back(&mut self, mark: Mark) {
        self.at = mark.at;
        self.depth = mark.depth;
        self.unfolded = mark.unfolded;
    }

    /// Accounts for memory that a list element takes beyond its text.
    pub(super) fn unfold(&mut self, bytes: usize) -> Read<()> {
        self.unfolded += bytes;
        if self.unfolded > MAX_UNFOLDED {
            Err(self.malformed("too many list elements"))
        } else {
            Ok(())
        }
    }

    /// Enters the list (`[`) or object (`{`) that comes next; false, and nothing moves, if another
    /// value comes.
    pub(super) fn enter(&mut self, open: u8) -> Read<bool> {
        if self.peek() != open {
            return Ok(false);
        }
        if self.depth == MAX_DEPTH {
            return Err(self.malformed("nested too deeply"));
        }
        self.depth += 1;
        self.at += 1;
        self.first = true;
        Ok(true)
    }

    /// Moves to the next element of the list that was entered; false, and the list is left, when
    /// there is none.
    pub(super) fn element(&mut self) -> Read<bool> {
        self.next(b']')
    }

    /// Moves to the name of the next member of the object that was entered; false, and the object
    /// is left, when there is none.
    #[inline]
    pub(super) fn member(&mut self) -> Read<bool> {
        self.next(b'}')
    }

    /// Moves past the member's name that comes next, to its value, if what leads there is `"name":`
    /// as it stands in `lead`; otherwise false, and nothing moves but past white space:
    /// [`Self::name`] reads any name.
    #[inline]
    pub(crate) fn is_led_by(&mut self, lead: &str) -> bool {
        self.peek();
        let found = self.text.as_bytes()[self.at..].starts_with(lead.as_bytes());
        if found {
            self.at += lead.len();
        }
        found
    }

    /// Moves past the member's name that comes next, to its value.
    pub(super) fn name(&mut self) -> Read<Token<'a>> {
        if self.peek() != b'"' {
            return Err(self.malformed("expected a member's name"));
        }
        let name = self.string()?;
        if self.peek() != b':' {
            return Err(self.malformed("expected a colon"));
        }
        self.at += 1;
        Ok(name)
    }

    #[inline]
    fn next(&mut self, close: u8) -> Read<bool> {
        let first = mem::take(&mut self.first);
        match self.peek() {
            b',' if !first => {
                // An entry must follow: whoever reads it finds the end if none does.
                self.at += 1;
                Ok(true)
            }
            byte if byte == close => {
                self.at += 1;
                self.depth -= 1;
                Ok(false)
            }
            _ if first => Ok(true),
            _ => Err(self.malformed("expected a comma or the end")),
        }
    }

    /// Reads the string that comes next. The caller has seen its quote.
    #[inline]
    pub(super) fn string(&mut self) -> Read<Token<'a>> {
        let start = self.at + 1;
        let escaped = self.skip_string()?;
        Ok(Token {
            raw: &self.text[start..self.at - 1],
            escaped,
        })
    }

    /// Moves past the string that comes next, and tells whether it has escapes. The caller has seen
    /// its quote.
    #[inline]
    fn skip_string(&mut self) -> Read<bool> {
        let bytes = self.text.as_bytes();
        let start = self.at + 1;
        let end = start + plain(&bytes[start..]);
        if bytes.get(end) == Some(&b'"') {
            self.at = end + 1;
            return Ok(false);
        }
        self.skip_escaped(end)
    }

    /// Moves past a string, from `at` on, that has an escape there or no end.
    #[cold]
    fn skip_escaped(&mut self, mut at: usize) -> Read<bool> {
        let bytes = self.text.as_bytes();
        loop {
            match bytes.get(at) {
                Some(b'"') => break,
                Some(b'\\') => {
                    at += match bytes.get(at + 1) {
                        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
                        Some(b'u')
                            if bytes
                                .get(at + 2..at + 6)
                                .is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) =>
                        {
                            6
                        }
                        _ => return Err(self.stop("a bad escape", at)),
                    };
                }
                Some(_) => return Err(self.stop("a control character in a string", at)),
                None => return Err(self.stop("a string without an end", at)),
            }
            at += plain(&bytes[at..]);
        }
        self.at = at + 1;
        Ok(true)
    }

    /// Reads the number that comes next; `None`, and nothing moves, if another value comes.
    pub(super) fn number(&mut self) -> Read<Option<&'a str>> {
        if !matches!(self.peek(), b'-' | b'0'..=b'9') {
            return Ok(None);
        }
        let bytes = self.text.as_bytes();
        let start = self.at;
        let mut at = start + usize::from(bytes[start] == b'-');
        let digits = |from: usize| {
            bytes[from..]
                .iter()
                .take_while(|byte| byte.is_ascii_digit())
                .count()
        };
        let whole = digits(at);
        if whole == 0 || (whole > 1 && bytes[at] == b'0') {
            return Err(self.malformed("a bad number"));
        }
        at += whole;
        if bytes.get(at) == Some(&b'.') {
            let fraction = digits(at + 1);
            if fraction == 0 {
                return Err(self.malformed("a bad number"));
            }
            at += 1 + fraction;
        }
        if matches!(bytes.get(at), Some(b'e' | b'E')) {
            at += 1 + usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
            let exponent = digits(at);
            if exponent == 0 {
                return Err(self.malformed("a bad number"));
            }
            at += exponent;
        }
        self.at = at;
        Ok(Some(&self.text[start..at]))
    }

    /// Reads `true`, `false` or `null` if that is what comes next.
    pub(super) fn literal(&mut self, literal: &'static str) -> bool {
        self.peek();
        let found = self.text[self.at..].starts_with(literal);
        if found {
            self.at += literal.len();
        }
        found
    }

    /// Skips the value that comes next and gives its text.
    pub(super) fn skip(&mut self) -> Read<&'a str> {
        let first = self.peek();
        let start = self.at;
        match first {
            b'{' => {
                self.enter(b'{')?;
                while self.member()? {
                    self.name()?;
                    self.skip()?;
                }
            }
            b'[' => {
                self.enter(b'[')?;
                while self.element()? {
                    self.skip()?;
                }
            }
            b'"' => {
                self.skip_string()?;
            }
            b'-' | b'0'..=b'9' => {
                self.number()?;
            }
            _ if self.literal("true") || self.literal("false") || self.literal("null") => {}
            0 if self.at == self.text.len() => {
                return Err(self.malformed("the end where a value was expected"));
            }
            _ => return Err(self.malformed("not a JSON value")),
        }
        Ok(&self.text[start..self.at])
    }
}

/// How many bytes stand before the next quote, backslash or control character. Strings are most of
/// a document.
///
/// The first bytes are looked at by eights, since most strings are short, and what is behind them
/// in blocks, by what the machine can. What lies behind the block of the byte that is found is not
/// looked at: a text of many lines is asked for line by line.
#[inline]
pub(super) fn plain(bytes: &[u8]) -> usize {
    const BLOCK: usize = 32;
    let (first, rest) = bytes.split_at(bytes.len().min(BLOCK));
    let run = plain_by_eights(first);
    if run < BLOCK {
        return run;
    }
    let (blocks, _) = rest.as_chunks::<BLOCK>();
    #[expect(
        clippy::needless_bitwise_bool,
        reason = "without a branch within a block compilers use vectors"
    )]
    let is_plain = |block: &&[u8; BLOCK]| {
        !block.iter().fold(false, |found, byte| {
            found | (*byte < 0x20) | (*byte == b'"') | (*byte == b'\\')
        })
    };
    let run = BLOCK * blocks.iter().take_while(is_plain).count();
    BLOCK + run + plain_by_eights(&rest[run..])
}

#[inline]
fn plain_by_eights(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const HIGHS: u64 = ONES << 7;
    let (words, rest) = bytes.as_chunks::<8>();
    for (at, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let below = |least: u8, word: u64| word.wrapping_sub(ONES * u64::from(least));
        let quote = below(1, word ^ (ONES * u64::from(b'"')));
        let backslash = below(1, word ^ (ONES * u64::from(b'\\')));
        // A byte that is not ASCII is none of the three.
        let found = (quote | backslash | below(0x20, word)) & !word & HIGHS;
        if found != 0 {
            // Only bits above the first true one can be wrong: a borrow runs upwards.
            return 8 * at + (found.trailing_zeros() / 8) as usize;
        }
    }
    8 * words.len()
        + rest
            .iter()
            .take_while(|byte| !matches!(byte, b'"' | b'\\' | 0..0x20))
            .count()
}

/// Resolves the escapes of a string whose grammar was checked. Half surrogate pairs come out as
/// three bytes that are not UTF-8.
fn unescape(raw: &str) -> Vec<u8> {
    let bytes = raw.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(run) = bytes[at..].iter().position(|byte| *byte == b'\\') {
        out.extend_from_slice(&bytes[at..at + run]);
        at += run + 2;
        match bytes[at - 1] {
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'u' => {
                let mut unit = hex(&bytes[at..]);
                at += 4;
                if (0xd800..0xdc00).contains(&unit) && bytes[at..].starts_with(b"\\u") {
                    let low = hex(&bytes[at + 2..]);
                    if (0xdc00..0xe000).contains(&low) {
                        unit = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                        at += 6;
                    }
                }
                push_wtf8(&mut out, unit);
            }
            other => out.push(other),
        }
    }
    out.extend_from_slice(&bytes[at..]);
    out
}

fn hex(bytes: &[u8]) -> u32 {
    bytes[..4].iter().fold(0, |unit, digit| {
        unit * 16 + (*digit as char).to_digit(16).unwrap_or_default()
    })
}

fn push_wtf8(out: &mut Vec<u8>, point: u32) {
    match char::from_u32(point) {
        Some(letter) => out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes()),
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a surrogate has sixteen bits"
        )]
        None => out.extend([
            0xe0 | (point >> 12) as u8,
            0x80 | (point >> 6 & 0x3f) as u8,
            0x80 | (point & 0x3f) as u8,
        ]),
    }
}
