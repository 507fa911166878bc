//! The codec: contract messages as JSON and back, losing nothing.
//!
//! What each message looks like is generated at build time (`build/codec.rs`; `build/sample.rs`
//! shows what comes out for one); this module holds the rules that the generated lines call. The
//! rules:
//!
//! 1. A JSON member is the field of the same name (or of an explicit `json_name`).
//! 2. An enum is its value name without the prefix, lower-cased: `RUN_STATUS_IN_PROGRESS` is
//!    `"in_progress"`.
//! 3. **A member is in its field iff writing the field back gives the same value.** Otherwise it
//!    is, whole and verbatim, in `extra_json`: JSON text of one object with the members that the
//!    message does not name or cannot hold. For a list element that is not an object at all,
//!    `extra_json` is that value.
//! 4. `null`, an empty list and an empty map are unset when read. Members that services always send
//!    are written even when empty (the table is in `build/codec.rs`).
//! 5. Of duplicate members the last wins. Depth is bounded at [`MAX_DEPTH`]; what a document
//!    unfolds to in memory by [`MAX_UNFOLDED`].
//!
//! On requests ([`encode_request`]) `extra_json` adds to the fields and may not contradict them:
//! see [`Violation`].
//!
//! Must hold: no I/O, no panic on any input, and only this module and its generator know how a
//! message looks as JSON. It is not built on serde: a visitor cannot go back in the middle of a
//! value and take the text of what does not fit.

mod cursor;
mod decimal;
mod edit;
pub(crate) mod read;
mod write;

use std::{borrow::Cow, collections::HashSet, sync::atomic::AtomicU8};

pub(crate) use cursor::Cursor;
pub use cursor::Malformed;
pub(crate) use cursor::Read;
pub(crate) use edit::{Member, path_to, split_member, without_member};
pub use write::Violation;
pub(crate) use write::{Empty, ObjectWriter, Writer};

/// The deepest nesting of lists and objects that is read or passed on.
pub const MAX_DEPTH: u8 = 128;

/// The most memory, in bytes, that the list elements of one document may take. A list of a hundred
/// long runs takes a thousandth of it; `[0,0,0,…]` where objects are expected would otherwise take
/// hundreds of times its text.
pub const MAX_UNFOLDED: usize = 64 << 20;

/// An enum whose values are JSON strings.
pub(crate) trait Names {
    /// The number of a name; `None` for one that the contract does not know.
    fn number(name: &[u8]) -> Option<i32>;
    /// The name of a number; `None` for "unspecified" and for numbers that the contract does not
    /// know.
    fn name(number: i32) -> Option<&'static str>;
}

/// A message that mirrors a JSON object.
pub(crate) trait Object: Value {
    /// Where among the members that have a field a name is.
    fn field_index(name: &[u8]) -> Option<usize>;
    /// The place of the member that came first in the last document, and then of the one that
    /// followed each place.
    fn following() -> &'static [AtomicU8];
    /// Reads the member at `place` into its field: its value, if its name was read (`named`), or
    /// all of it. If another name comes or the value does not fit: false, and the field is as it
    /// was or unset, and the cursor anywhere.
    fn read(&mut self, field_index: usize, named: bool, value: &mut Cursor<'_>) -> Read<bool>;
    /// Writes the fields that are set, without `extra_json`.
    fn write(&self, out: &mut ObjectWriter<'_>) -> Result<(), Violation>;
    fn extra(&self) -> &str;
    fn extra_mut(&mut self) -> &mut String;
}

/// A message that mirrors a JSON value: an object, or one of the bare forms.
pub(crate) trait Value: Default {
    /// Reads a value into a message that is as new; false, with the message and the cursor
    /// anywhere, if it has no form that the message mirrors.
    ///
    /// In place, because messages are large and lie in one another: given back, each would be moved
    /// once for every level.
    fn read_value(&mut self, value: &mut Cursor<'_>) -> Read<bool>;
    fn write_value(&self, out: &mut Writer<'_>) -> Result<(), Violation>;
}

/// A message of the contract that stands for a JSON document. Implemented by every message that
/// mirrors JSON; sealed, since only the generator can write implementations.
#[expect(private_bounds, reason = "sealed")]
pub trait Document: Value {}

impl<M: Value> Document for M {}

/// Reads one JSON document.
///
/// Anything that is JSON and has one of the message's forms is read; what the fields cannot hold is
/// in `extra_json`.
pub fn decode<M: Document>(text: &[u8]) -> Result<M, Malformed> {
    let mut message = M::default();
    read(&mut message, text)?;
    Ok(message)
}

/// The same, where the message is to stay where it is read.
pub(crate) fn decode_boxed<M: Document>(text: &[u8]) -> Result<Box<M>, Malformed> {
    let mut message = Box::<M>::default();
    read(&mut *message, text)?;
    Ok(message)
}

fn read(message: &mut impl Document, text: &[u8]) -> Result<(), Malformed> {
    whole(text, |cursor| {
        if message.read_value(cursor)? {
            Ok(())
        } else {
            Err(cursor.malformed("another form of value than expected"))
        }
    })
}

/// Reads text that must end where `each` has read to.
fn whole<'a>(
    text: &'a [u8],
    each: impl FnOnce(&mut Cursor<'a>) -> Read<()>,
) -> Result<(), Malformed> {
    let mut cursor = Cursor::new(text)?;
    each(&mut cursor)
        .and_then(|()| cursor.end())
        .map_err(|stopped| cursor.why(stopped))
}

/// Writes a message as a document of an upstream: members that services always send are there even
/// when empty.
///
/// Fails only for what cannot have come from [`decode`]: enum numbers without a name, NaN,
/// infinities, an `extra_json` that is not JSON.
pub fn encode<M: Document>(message: &M) -> Result<Vec<u8>, Violation> {
    let mut out = Vec::with_capacity(1024);
    message.write_value(&mut Writer::document(&mut out))?;
    Ok(out)
}

/// Writes a message as the body of a request.
///
/// A missing `type` is inferred when exactly one payload is set. `owned` names members of the body
/// that the gateway sets itself: naming one of them in `extra_json` is a violation, and so is
/// everything else that [`Violation`] lists.
pub fn encode_request<M: Document>(message: &M, owned: &[&str]) -> Result<Vec<u8>, Violation> {
    let mut out = Vec::with_capacity(512);
    message.write_value(&mut Writer::request(&mut out, owned))?;
    Ok(out)
}

/// Whether the text is an object with a list as member `name`. An empty list of a Go server may be
/// null, in a document that says to be a list; so may the data of what is none.
pub(crate) fn has_list(text: &[u8], name: &str) -> bool {
    let says_list = || {
        text_member(text, "object").is_some_and(|object| object == "list")
            || member(text, "has_more").is_some()
    };
    member(text, name).is_some_and(|value| value.starts_with('[') || value == "null" && says_list())
}

/// The text of member `name` of an object; `None` if it is not there or the text is not exactly one
/// object. Of duplicates the last.
pub(crate) fn member<'a>(text: &'a [u8], name: &str) -> Option<&'a str> {
    let mut found = None;
    let each = |member: Cow<'_, [u8]>, value| {
        if *member == *name.as_bytes() {
            found = Some(value);
        }
    };
    members(text, each).ok().and(found)
}

/// The string that is member `name` of an object.
pub(crate) fn text_member(text: &[u8], name: &str) -> Option<String> {
    let value = member(text, name).filter(|value| value.starts_with('"'))?;
    Some(
        Cursor::new(value.as_bytes())
            .ok()?
            .string()
            .ok()?
            .text()?
            .into_owned(),
    )
}

/// Whether the text is exactly one JSON value.
pub(crate) fn is_whole(text: &[u8]) -> bool {
    one_value(text).is_ok()
}

fn one_value(text: &[u8]) -> Result<(), Malformed> {
    whole(text, |cursor| cursor.skip().map(drop))
}

/// The decoded names of an object's members. Fails if the text is not exactly one object.
fn names(object: &str) -> Result<HashSet<Vec<u8>>, Malformed> {
    let mut names = HashSet::new();
    members(object.as_bytes(), |name, _| {
        names.insert(name.into_owned());
    })?;
    Ok(names)
}

fn members<'a>(
    object: &'a [u8],
    mut each: impl FnMut(Cow<'a, [u8]>, &'a str),
) -> Result<(), Malformed> {
    whole(object, |cursor| {
        if !cursor.enter(b'{')? {
            return Err(cursor.malformed("not an object"));
        }
        while cursor.member()? {
            let name = cursor.name()?;
            each(name.bytes(), cursor.skip()?);
        }
        Ok(())
    })
}
