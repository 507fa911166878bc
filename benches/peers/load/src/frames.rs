//! Cuts what arrives into gRPC messages or server-sent events, however it was cut on its way.

use std::time::SystemTime;

use memchr::memmem;

/// How frames end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// A flag byte, four bytes of length, a message.
    Grpc,
    /// An empty line ends an event.
    Events,
}

/// What has arrived of a frame that is not complete.
pub struct Frames {
    framing: Framing,
    rest: Vec<u8>,
}

impl Frames {
    pub fn new(framing: Framing) -> Self {
        Self {
            framing,
            rest: Vec::new(),
        }
    }

    /// Gives every frame that `bytes` completes to `each`.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) {
        let mut left = bytes;
        if !self.rest.is_empty() {
            // What is large comes in many pieces: they are joined once, and not for each of them.
            let searched = self.rest.len().saturating_sub(1);
            self.rest.extend_from_slice(bytes);
            let Some(length) = self.framing.length(&self.rest, searched) else {
                return;
            };
            each(&self.rest[..length]);
            left = &bytes[bytes.len() - (self.rest.len() - length)..];
            self.rest.clear();
        }
        while let Some(length) = self.framing.length(left, 0) {
            each(&left[..length]);
            left = &left[length..];
        }
        self.rest.extend_from_slice(left);
    }

    /// Whether nothing is left over.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

impl Framing {
    /// The length of the first frame, if all of it is there. It does not end before `searched`.
    fn length(self, bytes: &[u8], searched: usize) -> Option<usize> {
        match self {
            Self::Grpc => {
                let message = u32::from_be_bytes(bytes.get(1..5)?.try_into().ok()?);
                Some(5 + message as usize).filter(|length| *length <= bytes.len())
            }
            Self::Events => Some(searched + memmem::find(&bytes[searched..], b"\n\n")? + 2),
        }
    }
}

/// The number that the upstream wrote into an event's text: `#00000042#`.
pub fn number(frame: &[u8]) -> Option<u64> {
    between::<8>(b'#', frame)
}

/// When the upstream sent an event, in microseconds since 1970, if it says so:
/// `@1764672000123456@`.
pub fn sent(frame: &[u8]) -> Option<u64> {
    between::<16>(b'@', frame)
}

/// A number of so many digits between two marks.
fn between<const DIGITS: usize>(mark: u8, frame: &[u8]) -> Option<u64> {
    let digits = memchr::memchr_iter(mark, frame).find_map(|at| {
        let marked = frame.get(at + 1..at + 2 + DIGITS)?;
        (marked[DIGITS] == mark).then_some(marked)
    })?;
    digits[..DIGITS].iter().try_fold(0, |number, digit| {
        digit
            .is_ascii_digit()
            .then(|| number * 10 + u64::from(digit - b'0'))
    })
}

/// Microseconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(0))
}
