//! Contract messages as protobuf.
//!
//! Must hold: byte for byte what prost writes (a property test compares the two). Not prost, which
//! asks every message for its length before it writes it, and so for the length of what lies in it
//! once for each level above (docs/performance.md has what it costs). Here a message is written
//! behind one byte for its length, and moved if that does not fit.
//!
//! What a message's fields are is generated (`build/wire.rs`); how a field is written follows from
//! its Rust type.

use std::{cell::RefCell, collections::BTreeMap};

use prost_types::{Duration, Timestamp};

/// A message of the contract, or one of protobuf's own that lies in them. Sealed: implementations
/// are the generator's and this file's.
#[expect(private_interfaces, reason = "sealed")]
pub trait Wire {
    #[doc(hidden)]
    fn write(&self, out: &mut Out);

    /// Gives what [`encode`] gives, in one part or several.
    #[doc(hidden)]
    fn parts(&self, mut take: impl FnMut(&[u8]))
    where
        Self: Sized,
    {
        encode(self, |bytes| take(bytes));
    }
}

/// Writes `message`, gives its bytes to `take`, and gives what that gives. `take` must not encode.
pub fn encode<T>(message: &impl Wire, take: impl FnOnce(&[u8]) -> T) -> T {
    /// What is kept for the next message, in bytes: more than most take.
    const KEPT: usize = 64 << 10;
    thread_local! {
        static OUT: RefCell<Out> = const { RefCell::new(Out(Vec::new())) };
    }
    OUT.with_borrow_mut(|out| {
        out.0.clear();
        message.write(out);
        let taken = take(&out.0);
        if out.0.capacity() > KEPT {
            out.0 = Vec::new();
        }
        taken
    })
}

/// Protobuf that is being written.
pub(crate) struct Out(Vec<u8>);

/// Wire types of the protobuf encoding.
const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const BYTES: u32 = 2;

impl Out {
    #[inline]
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            #[expect(clippy::cast_possible_truncation, reason = "the low seven bits")]
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        #[expect(clippy::cast_possible_truncation, reason = "seven bits are left")]
        self.0.push(value as u8);
    }

    #[inline]
    fn key(&mut self, number: u32, wire_type: u32) {
        self.varint(u64::from(number << 3 | wire_type));
    }

    #[inline]
    fn integer(&mut self, number: u32, value: i64) {
        self.key(number, VARINT);
        self.varint(value.cast_unsigned());
    }

    /// Fields that are written already.
    pub(crate) fn encoded(&mut self, fields: &[u8]) {
        self.0.extend_from_slice(fields);
    }

    #[inline]
    fn bytes(&mut self, number: u32, bytes: &[u8]) {
        self.key(number, BYTES);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn message(&mut self, number: u32, message: &impl Wire) {
        self.nested(number, |out| message.write(out));
    }

    #[inline]
    fn nested(&mut self, number: u32, write: impl FnOnce(&mut Self)) {
        self.key(number, BYTES);
        let start = self.0.len();
        self.0.push(0);
        write(self);
        let length = self.0.len() - start - 1;
        match u8::try_from(length) {
            Ok(short) if short < 0x80 => self.0[start] = short,
            _ => self.widen(start, length),
        }
    }

    /// Puts `length` where one byte was left for it at `start`, and what was written behind that as
    /// far back as it takes.
    fn widen(&mut self, start: usize, length: usize) {
        let width = length.ilog2() as usize / 7 + 1;
        self.0.resize(self.0.len() + width - 1, 0);
        self.0
            .copy_within(start + 1..=start + length, start + width);
        for (at, byte) in self.0[start..start + width].iter_mut().enumerate() {
            let more = if at + 1 < width { 0x80 } else { 0 };
            #[expect(clippy::cast_possible_truncation, reason = "seven bits")]
            (*byte = (length >> (7 * at) & 0x7f) as u8 | more);
        }
    }
}

/// A field's Rust type: how it is written, if it is set.
trait Field {
    fn put(&self, number: u32, out: &mut Out);
}

impl Field for String {
    #[inline]
    fn put(&self, number: u32, out: &mut Out) {
        if !self.is_empty() {
            out.bytes(number, self.as_bytes());
        }
    }
}

impl Field for Option<String> {
    #[inline]
    fn put(&self, number: u32, out: &mut Out) {
        if let Some(text) = self {
            out.bytes(number, text.as_bytes());
        }
    }
}

impl Field for Vec<u8> {
    fn put(&self, number: u32, out: &mut Out) {
        if !self.is_empty() {
            out.bytes(number, self);
        }
    }
}

impl Field for bool {
    fn put(&self, number: u32, out: &mut Out) {
        if *self {
            out.integer(number, 1);
        }
    }
}

/// An enum's number, or an integer without presence.
impl Field for i32 {
    fn put(&self, number: u32, out: &mut Out) {
        if *self != 0 {
            out.integer(number, i64::from(*self));
        }
    }
}

impl Field for i64 {
    fn put(&self, number: u32, out: &mut Out) {
        if *self != 0 {
            out.integer(number, *self);
        }
    }
}

impl Field for Option<bool> {
    fn put(&self, number: u32, out: &mut Out) {
        if let Some(flag) = self {
            out.integer(number, i64::from(*flag));
        }
    }
}

impl Field for Option<i32> {
    fn put(&self, number: u32, out: &mut Out) {
        if let Some(value) = self {
            out.integer(number, i64::from(*value));
        }
    }
}

impl Field for Option<i64> {
    fn put(&self, number: u32, out: &mut Out) {
        if let Some(value) = self {
            out.integer(number, *value);
        }
    }
}

impl Field for Option<f64> {
    fn put(&self, number: u32, out: &mut Out) {
        if let Some(value) = self {
            out.key(number, FIXED64);
            out.0.extend_from_slice(&value.to_le_bytes());
        }
    }
}

impl Field for Vec<String> {
    fn put(&self, number: u32, out: &mut Out) {
        for text in self {
            out.bytes(number, text.as_bytes());
        }
    }
}

/// A map is a list of messages of two fields.
impl Field for BTreeMap<String, String> {
    fn put(&self, number: u32, out: &mut Out) {
        for (name, value) in self {
            out.nested(number, |out| {
                name.put(1, out);
                value.put(2, out);
            });
        }
    }
}

impl<M: Wire> Field for Option<M> {
    fn put(&self, number: u32, out: &mut Out) {
        if let Some(message) = self {
            out.message(number, message);
        }
    }
}

impl<M: Wire> Field for Vec<M> {
    fn put(&self, number: u32, out: &mut Out) {
        for message in self {
            out.message(number, message);
        }
    }
}

#[expect(private_interfaces, reason = "sealed")]
impl<M: Wire> Wire for Box<M> {
    fn write(&self, out: &mut Out) {
        (**self).write(out);
    }
}

#[expect(private_interfaces, reason = "sealed")]
impl Wire for Timestamp {
    fn write(&self, out: &mut Out) {
        self.seconds.put(1, out);
        self.nanos.put(2, out);
    }
}

#[expect(private_interfaces, reason = "sealed")]
impl Wire for Duration {
    fn write(&self, out: &mut Out) {
        self.seconds.put(1, out);
        self.nanos.put(2, out);
    }
}

mod generated {
    #![allow(
        clippy::all,
        clippy::pedantic,
        private_interfaces,
        unused_variables,
        reason = "generated"
    )]

    use super::{Field as _, Out, Wire};
    use crate::v1::*;

    include!(concat!(env!("OUT_DIR"), "/wire.rs"));
}
