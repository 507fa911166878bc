//! Reading: one function per kind of field, called by the generated lines.
//!
//! Must hold: a function says true, "held", iff writing the field would give the value back (or the
//! value is one of the empty forms that mean "unset"). Otherwise it leaves the field unset,
//! whatever an earlier duplicate put there, and the caller goes back and takes the text.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::atomic::Ordering,
};

use prost_types::Timestamp;

use super::{
    Cursor, Names, Object, Value,
    cursor::{Mark, Read, Token},
    decimal,
};

/// Seconds of the years 1 to 9999, the range of a protobuf timestamp.
pub(super) const TIMES: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// Sets `field` to what was read, or to its default where nothing fits.
fn set<T: Default>(field: &mut T, value: Option<T>) -> bool {
    let held = value.is_some();
    *field = value.unwrap_or_default();
    held
}

/// Clears `field` and reads on if the value is `null`.
fn null<T: Default>(field: &mut T, value: &mut Cursor<'_>) -> bool {
    let null = value.peek() == b'n' && value.literal("null");
    if null {
        *field = T::default();
    }
    null
}

fn string<'a>(value: &mut Cursor<'a>) -> Read<Option<Cow<'a, str>>> {
    if value.peek() == b'"' {
        Ok(value.string()?.text())
    } else {
        Ok(None)
    }
}

/// Reads a value of which only a string or `null` can fit. Strings are most of what comes, and so
/// are looked for first.
fn set_text<T: Default>(
    field: &mut T,
    value: &mut Cursor<'_>,
    fit: impl FnOnce(Cow<'_, str>) -> Option<T>,
) -> Read<bool> {
    if value.peek() != b'"' {
        return Ok(null(field, value) || set(field, None));
    }
    let text = value.string()?.text();
    Ok(set(field, text.and_then(fit)))
}

/// An id or a name. The empty string does not fit: it would read back as unset.
pub(crate) fn text(field: &mut String, value: &mut Cursor<'_>) -> Read<bool> {
    set_text(field, value, |text| {
        if text.is_empty() {
            None
        } else {
            Some(text.into_owned())
        }
    })
}

/// Free text, where the empty string differs from nothing.
pub(crate) fn optional_text(field: &mut Option<String>, value: &mut Cursor<'_>) -> Read<bool> {
    set_text(field, value, |text| Some(Some(text.into_owned())))
}

/// Any JSON value, kept as its text.
pub(crate) fn json(field: &mut String, value: &mut Cursor<'_>) -> Read<bool> {
    if null(field, value) {
        return Ok(true);
    }
    let text = value.skip()?;
    Ok(set(field, Some(text.to_owned())))
}

/// A boolean.
#[expect(clippy::unnecessary_wraps, reason = "one signature for every rule")]
pub(crate) fn flag(field: &mut Option<bool>, value: &mut Cursor<'_>) -> Read<bool> {
    if null(field, value) {
        return Ok(true);
    }
    let flag = if value.literal("true") {
        Some(true)
    } else {
        value.literal("false").then_some(false)
    };
    Ok(set(field, flag.map(Some)))
}

/// A whole number.
pub(crate) fn integer<N: TryFrom<i64>>(
    field: &mut Option<N>,
    value: &mut Cursor<'_>,
) -> Read<bool> {
    if null(field, value) {
        return Ok(true);
    }
    let number = value
        .number()?
        .and_then(decimal::integer)
        .and_then(|number| N::try_from(number).ok());
    Ok(set(field, number.map(Some)))
}

/// A number.
pub(crate) fn number(field: &mut Option<f64>, value: &mut Cursor<'_>) -> Read<bool> {
    if null(field, value) {
        return Ok(true);
    }
    let number = value.number()?.and_then(decimal::double);
    Ok(set(field, number.map(Some)))
}

/// A time, in JSON a whole number of seconds since 1970.
pub(crate) fn time(field: &mut Option<Timestamp>, value: &mut Cursor<'_>) -> Read<bool> {
    if null(field, value) {
        return Ok(true);
    }
    let seconds = value
        .number()?
        .and_then(decimal::integer)
        .filter(|seconds| TIMES.contains(seconds));
    Ok(set(
        field,
        seconds.map(|seconds| Some(Timestamp { seconds, nanos: 0 })),
    ))
}

/// A value of a closed set.
pub(crate) fn name<N: Names>(field: &mut i32, value: &mut Cursor<'_>) -> Read<bool> {
    if null(field, value) {
        return Ok(true);
    }
    let number = if value.peek() == b'"' {
        N::number(&value.string()?.bytes())
    } else {
        None
    };
    Ok(set(field, number))
}

/// A list of strings. One bad element and none fits.
pub(crate) fn texts(field: &mut Vec<String>, value: &mut Cursor<'_>) -> Read<bool> {
    if null(field, value) {
        return Ok(true);
    }
    field.clear();
    if !value.enter(b'[')? {
        return Ok(false);
    }
    while value.element()? {
        value.unfold(size_of::<String>())?;
        match string(value)? {
            Some(text) => field.push(text.into_owned()),
            None => return Ok(set(field, None)),
        }
    }
    Ok(true)
}

/// An object of strings. One bad value and none fits.
pub(crate) fn map(field: &mut BTreeMap<String, String>, value: &mut Cursor<'_>) -> Read<bool> {
    if null(field, value) {
        return Ok(true);
    }
    field.clear();
    if !value.enter(b'{')? {
        return Ok(false);
    }
    // A duplicate whose last value is a string fits, whatever the ones before were.
    let mut unfit = BTreeSet::new();
    while value.member()? {
        let name = value.name()?;
        value.unfold(2 * size_of::<String>())?;
        let mark = value.mark();
        if let (Some(name), Some(text)) = (name.text(), string(value)?) {
            unfit.remove(name.as_bytes());
            field.insert(name.into_owned(), text.into_owned());
        } else {
            value.back(mark);
            value.skip()?;
            unfit.insert(name.bytes().into_owned());
        }
    }
    Ok(unfit.is_empty() || set(field, None))
}

/// A message.
pub(crate) fn object<M: Value>(field: &mut Option<M>, value: &mut Cursor<'_>) -> Read<bool> {
    if null(field, value) {
        return Ok(true);
    }
    let held = field.insert(M::default()).read_value(value)?;
    Ok(held || set(field, None))
}

/// A list of messages. An element that is not an object is kept as its text, in `extra_json`.
pub(crate) fn objects<M: Object>(field: &mut Vec<M>, value: &mut Cursor<'_>) -> Read<bool> {
    if null(field, value) {
        return Ok(true);
    }
    field.clear();
    if !value.enter(b'[')? {
        return Ok(false);
    }
    while value.element()? {
        value.unfold(size_of::<M>())?;
        let mark = value.mark();
        if field.is_empty() {
            // Most lists have one element, and `push` makes room for four.
            *field = Vec::with_capacity(1);
        }
        field.push(M::default());
        let Some(message) = field.last_mut() else {
            break;
        };
        if !message.read_value(value)? {
            value.back(mark);
            *message = M::default();
            value.skip()?.clone_into(message.extra_mut());
        }
    }
    Ok(true)
}

/// An object, member by member; false if another value comes.
///
/// Services write members in one order each, and so the member that followed last time is tried
/// before a name is read.
pub(crate) fn object_value<M: Object>(message: &mut M, value: &mut Cursor<'_>) -> Read<bool> {
    if !value.enter(b'{')? {
        return Ok(false);
    }
    let mut extra = Extra::default();
    let following = M::following();
    let mut last = 0;
    while value.member()? {
        let guess = usize::from(following[last].load(Ordering::Relaxed));
        // After a member that did not fit all are told by their names: one may be its duplicate.
        if extra.unfit.is_empty() {
            let mark = value.mark();
            if message.read(guess, false, value)? {
                last = guess + 1;
                continue;
            }
            value.back(mark);
        }
        let name = value.name()?;
        let field_index = M::field_index(&name.bytes());
        let mark = value.mark();
        let held = match field_index {
            Some(field_index) => {
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "no message has as many fields"
                )]
                following[last].store(field_index as u8, Ordering::Relaxed);
                last = field_index + 1;
                message.read(field_index, true, value)?
            }
            None => false,
        };
        if held {
            extra.held(name);
        } else {
            extra.take(name, field_index.is_some(), value, mark)?;
        }
    }
    if !extra.is_empty() {
        *message.extra_mut() = extra.into_object();
    }
    Ok(true)
}

/// The members of one object that its message does not hold.
#[derive(Default)]
struct Extra<'a> {
    /// Members with a field that could not hold them: at most one per field, so that duplicates
    /// cost nothing.
    unfit: Vec<(Token<'a>, &'a str)>,
    /// Members without a field. Duplicates are sorted out at the end.
    unknown: Vec<(Token<'a>, &'a str)>,
}

impl<'a> Extra<'a> {
    fn is_empty(&self) -> bool {
        self.unfit.is_empty() && self.unknown.is_empty()
    }

    /// A member is in its field, which an earlier duplicate was not.
    fn held(&mut self, name: Token<'a>) {
        if !self.unfit.is_empty() {
            self.unfit
                .retain(|(earlier, _)| earlier.bytes() != name.bytes());
        }
    }

    /// Takes a member that its field could not hold, if it has one.
    fn take(
        &mut self,
        name: Token<'a>,
        has_field: bool,
        value: &mut Cursor<'a>,
        mark: Mark,
    ) -> Read<()> {
        self.held(name);
        value.back(mark);
        let member = (name, value.skip()?);
        let list = if has_field {
            &mut self.unfit
        } else {
            &mut self.unknown
        };
        list.push(member);
        Ok(())
    }

    fn into_object(mut self) -> String {
        if self.unknown.len() > 1 {
            let mut last = HashMap::with_capacity(self.unknown.len());
            for (at, (name, _)) in self.unknown.iter().enumerate() {
                last.insert(name.bytes(), at);
            }
            if last.len() < self.unknown.len() {
                let mut kept: Vec<usize> = last.into_values().collect();
                kept.sort_unstable();
                self.unknown = kept.into_iter().map(|at| self.unknown[at]).collect();
            }
        }
        let mut out = String::from("{");
        for (name, value) in self.unfit.iter().chain(&self.unknown) {
            if out.len() > 1 {
                out.push(',');
            }
            out.extend(["\"", name.raw(), "\":", value]);
        }
        out.push('}');
        out
    }
}
