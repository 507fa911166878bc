//! Which log, and places in it.
//!
//! Must hold: a log belongs to who made it. Its key is a keyed hash of the caller's name, of all
//! that decides what it may see upstream, and of the run: for anybody else there is no such log, and
//! who reads the store learns no credential.

use std::{
    borrow::Borrow,
    fmt::{self, Write as _},
    sync::Arc,
};

use ring::{
    hmac,
    rand::{SecureRandom as _, SystemRandom},
};

use crate::upstream::Caller;

/// As much of a key as a position has, in digits.
const TAG: usize = 8;

/// The log of one run, as one caller recorded it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::runs) struct Key(Arc<str>);

impl Key {
    /// As part of the name of a key in a store: 32 hexadecimal digits.
    pub(in crate::runs) fn as_str(&self) -> &str {
        &self.0
    }

    /// What binds a position to this log. It gives nothing away.
    fn tag(&self) -> [u8; TAG] {
        *self.0.as_bytes().first_chunk().expect("a key is longer")
    }

    #[cfg(test)]
    pub(in crate::runs) fn new(key: &str) -> Self {
        Self(format!("{key:0>32}").into())
    }
}

impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Makes keys, under a secret that all replicas share.
#[derive(Debug, Clone)]
pub(in crate::runs) struct Keys(hmac::Key);

impl Keys {
    /// Under this secret.
    pub(in crate::runs) fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// Under a secret that nobody else knows.
    pub(in crate::runs) fn random() -> Self {
        Self::new(&random())
    }

    /// The key of a run's log, as `caller` records it.
    pub(in crate::runs) fn key(&self, caller: &Caller, thread_id: &str, run_id: &str) -> Key {
        self.sign("log", caller, thread_id, run_id)
    }

    /// The key of a run's board, as it is polled for all who may see what `caller` may see.
    pub(in crate::runs) fn poll_key(&self, caller: &Caller, thread_id: &str, run_id: &str) -> Key {
        self.sign("poll", caller, thread_id, run_id)
    }

    /// The key of a run, whoever sees it.
    pub(in crate::runs) fn run_key(&self, thread_id: &str, run_id: &str) -> Key {
        self.sign("run", &Caller::default(), thread_id, run_id)
    }

    /// The key of a create of this caller's.
    pub(in crate::runs) fn create_key(&self, caller: &Caller, create: &str) -> Key {
        self.sign("create", caller, create, "")
    }

    fn sign(&self, kind: &str, caller: &Caller, thread_id: &str, run_id: &str) -> Key {
        let mut context = hmac::Context::with_key(&self.0);
        // With its length, no part can pose as two.
        let mut add = |part: &[u8]| {
            context.update(&part.len().to_be_bytes());
            context.update(part);
        };
        add(kind.as_bytes());
        add(caller.name.as_deref().unwrap_or_default().as_bytes());
        for (name, value) in caller.identity().headers() {
            add(name.as_str().as_bytes());
            add(value.as_bytes());
        }
        add(b"");
        add(thread_id.as_bytes());
        add(run_id.as_bytes());
        if let Some(mark) = &caller.mark {
            add(mark.as_str().as_bytes());
        }
        let hash = context.sign();
        Key(hex(&hash.as_ref()[..16]).into())
    }
}

/// A place in a log: the epoch of its writer, and the number of the entry in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::runs) struct Position {
    pub(in crate::runs) epoch: u64,
    pub(in crate::runs) sequence: u64,
}

impl Position {
    /// Before all entries.
    pub(in crate::runs) const START: Self = Self::new(0, 0);

    pub(in crate::runs) const fn new(epoch: u64, sequence: u64) -> Self {
        Self { epoch, sequence }
    }

    /// The entry of this position is the first of its epoch: it says which entry it follows, and
    /// holds no event.
    pub(in crate::runs) fn begins_epoch(self) -> bool {
        self.sequence == 0
    }

    /// The next place in the same epoch.
    pub(in crate::runs) fn next(self) -> Self {
        Self::new(self.epoch, self.sequence + 1)
    }

    /// Reads what [`Display`](fmt::Display) writes.
    pub(in crate::runs) fn parse(text: &[u8]) -> Option<Self> {
        let (epoch, sequence) = str::from_utf8(text).ok()?.split_once('-')?;
        Some(Self::new(number(epoch)?, number(sequence)?))
    }

    /// As a caller sees it: bound to the log of `key`.
    pub(in crate::runs) fn bound_to(self, key: &Key) -> BoundPosition {
        BoundPosition {
            position: self,
            tag: key.tag(),
        }
    }

    /// Reads what [`BoundPosition`] writes; `None` if that is no position of this log.
    pub(in crate::runs) fn from_text(text: &str, key: &Key) -> Option<Self> {
        let (position, tag) = text.rsplit_once('-')?;
        (tag.as_bytes() == key.tag()).then(|| Self::parse(position.as_bytes()))?
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.sequence)
    }
}

/// A position as a caller sees it: bound to a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::runs) struct BoundPosition {
    position: Position,
    tag: [u8; TAG],
}

impl BoundPosition {
    /// Gives it to `take` as a field of a protobuf message that has this key. Every event has one:
    /// formatting takes five times as long.
    pub(in crate::runs) fn write(&self, key: u8, take: impl FnOnce(&[u8])) {
        // Two numbers of up to twenty digits.
        let mut field = [b'-'; 2 + 2 * 20 + 2 + TAG];
        let mut end = 2;
        for number in [self.position.epoch, self.position.sequence] {
            let mut digits = itoa::Buffer::new();
            let digits = digits.format(number).as_bytes();
            field[end..end + digits.len()].copy_from_slice(digits);
            end += digits.len() + 1;
        }
        field[end..end + TAG].copy_from_slice(&self.tag);
        end += TAG;
        // Shorter than 128.
        field[..2].copy_from_slice(&[key, u8::try_from(end - 2).unwrap_or(0)]);
        take(&field[..end]);
    }
}

impl fmt::Display for BoundPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tag = str::from_utf8(&self.tag).unwrap_or_default();
        write!(f, "{}-{tag}", self.position)
    }
}

/// A number as it is written here: no sign, no zeros in front.
fn number(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

/// Bytes that nobody can guess.
pub(super) fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    SystemRandom::new()
        .fill(&mut bytes)
        .expect("the system has random numbers: TLS needs them, too");
    bytes
}

/// Hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut digits, byte| {
        _ = write!(digits, "{byte:02x}");
        digits
    })
}
