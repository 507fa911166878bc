//! What a request's JSON may look like, and the error for what does not.
//!
//! Must hold: the error names the parameter by its path (`tools[0].function.name`) and says what
//! was expected, as the real service does; what passes fits into the contract's messages with
//! nothing left over. The codec cannot say this: it accepts anything, and keeps it.

use std::{fmt, ops::RangeInclusive};

use serde_json::{Map, Value};

use super::error::Error;

/// The form of a JSON value.
pub(super) enum Shape {
    /// Text of so many characters.
    Text(RangeInclusive<usize>),
    /// Letters, digits, underscores and dashes, at most 64.
    Name,
    Flag,
    Integer(RangeInclusive<i64>),
    Number(RangeInclusive<f64>),
    OneOf(&'static [&'static str]),
    List(RangeInclusive<usize>, &'static Shape),
    /// An object with these members and no others.
    Object(&'static [Member]),
    /// An object whose `type` says which members it has.
    Tagged(&'static [(&'static str, &'static [Member])]),
    /// An object of up to 16 strings.
    Metadata,
    /// An object with any members.
    Open,
    /// The first form if a string comes, else the second.
    Or(&'static Shape, &'static Shape),
}

/// A member of an object.
pub(super) struct Member {
    pub(super) name: &'static str,
    pub(super) shape: &'static Shape,
    pub(super) required: bool,
}

/// Holds `value`, found at `path`, to its shape.
pub(super) fn check(path: &str, value: &Value, shape: &Shape) -> Result<(), Error> {
    match (shape, value) {
        (Shape::Text(length), Value::String(text)) => {
            size(path, "string", "length", text.chars().count(), length)
        }
        (Shape::Name, Value::String(text)) => {
            size(path, "string", "length", text.chars().count(), &(1..=64))?;
            if text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
            {
                return Ok(());
            }
            let expected = "Expected a string that matches the pattern '^[a-zA-Z0-9_-]+$'.";
            Err(Error::parameter(
                path,
                "invalid_value",
                format!("Invalid '{path}': string does not match pattern. {expected}"),
            ))
        }
        (Shape::Flag, Value::Bool(_)) | (Shape::Open, Value::Object(_)) => Ok(()),
        (Shape::Integer(range), Value::Number(number)) if number.is_i64() => between(
            path,
            number.as_i64().unwrap_or_default(),
            *range.start(),
            *range.end(),
        ),
        (Shape::Number(range), Value::Number(number)) => {
            let (number, least, most) = (
                number.as_f64().unwrap_or(f64::NAN),
                *range.start(),
                *range.end(),
            );
            bound(path, "decimal", number, least, most)
        }
        (Shape::OneOf(names), Value::String(text)) if names.contains(&text.as_str()) => Ok(()),
        (Shape::OneOf(names), Value::String(text)) => Err(Error::not_one_of(path, text, names)),
        (Shape::List(length, of), Value::Array(values)) => {
            size(path, "array", "length", values.len(), length)?;
            values
                .iter()
                .enumerate()
                .try_for_each(|(at, value)| check(&format!("{path}[{at}]"), value, of))
        }
        (Shape::Object(members), Value::Object(object)) => {
            check_members(path, object, members, &[])
        }
        (Shape::Tagged(kinds), Value::Object(object)) => {
            let tag = join(path, "type");
            let names: Vec<&str> = kinds.iter().map(|(name, _)| *name).collect();
            let kind = match object.get("type") {
                Some(Value::String(kind)) => kind,
                None | Some(Value::Null) => return Err(Error::missing(&tag)),
                Some(other) => return Err(wrong_type(&tag, "a string", other)),
            };
            let (_, members) = kinds
                .iter()
                .find(|(name, _)| name == kind)
                .ok_or_else(|| Error::not_one_of(&tag, kind, &names))?;
            check_members(path, object, members, &["type"])
        }
        (Shape::Metadata, Value::Object(pairs)) => metadata(path, pairs),
        (Shape::Or(bare, _), Value::String(_)) => check(path, value, bare),
        (Shape::Or(_, other), _) => check(path, value, other),
        (shape, value) => Err(wrong_type(path, shape.expected(), value)),
    }
}

fn check_members(
    path: &str,
    object: &Map<String, Value>,
    members: &[Member],
    besides: &[&str],
) -> Result<(), Error> {
    let known =
        |name: &str| besides.contains(&name) || members.iter().any(|member| member.name == name);
    if let Some(name) = object.keys().find(|name| !known(name)) {
        let path = join(path, name);
        return Err(Error::parameter(
            &path,
            "unknown_parameter",
            format!("Unknown parameter: '{path}'."),
        ));
    }
    for member in members {
        let path = join(path, member.name);
        match object.get(member.name) {
            None | Some(Value::Null) if member.required => return Err(Error::missing(&path)),
            None | Some(Value::Null) => {}
            Some(value) => check(&path, value, member.shape)?,
        }
    }
    Ok(())
}

fn metadata(path: &str, pairs: &Map<String, Value>) -> Result<(), Error> {
    if pairs.len() > 16 {
        let expected = format!(
            "Expected an object with at most 16 properties, but got {}.",
            pairs.len()
        );
        let message = format!("Invalid '{path}': too many properties. {expected}");
        return Err(Error::parameter(
            path,
            "object_above_max_properties",
            message,
        ));
    }
    for (name, value) in pairs {
        if name.chars().count() > 64 {
            let message = format!(
                "Invalid property name in '{path}': string too long. Expected a string with maximum length 64."
            );
            return Err(Error::parameter(
                path,
                "property_name_above_max_length",
                message,
            ));
        }
        check(&join(path, name), value, &Shape::Text(0..=512))?;
    }
    Ok(())
}

/// Holds a whole number to its range.
pub(super) fn between(path: &str, number: i64, least: i64, most: i64) -> Result<(), Error> {
    bound(path, "integer", number, least, most)
}

fn bound<N: Copy + PartialOrd + fmt::Display>(
    path: &str,
    kind: &str,
    number: N,
    least: N,
    most: N,
) -> Result<(), Error> {
    let (side, code, sign, limit) = if number < least {
        ("below minimum", "below_min", ">=", least)
    } else if number <= most {
        return Ok(());
    } else {
        ("above maximum", "above_max", "<=", most)
    };
    let expected = format!("Expected a value {sign} {limit}, but got {number} instead.");
    Err(Error::parameter(
        path,
        &format!("{kind}_{code}_value"),
        format!("Invalid '{path}': {kind} {side} value. {expected}"),
    ))
}

fn size(
    path: &str,
    kind: &str,
    what: &str,
    size: usize,
    range: &RangeInclusive<usize>,
) -> Result<(), Error> {
    let (fault, code, limit) = if size < *range.start() {
        ("short", "below_min", range.start())
    } else if size > *range.end() {
        ("long", "above_max", range.end())
    } else {
        return Ok(());
    };
    let bound = if size < *limit { "minimum" } else { "maximum" };
    let message = format!(
        "Invalid '{path}': {kind} too {fault}. Its {bound} {what} is {limit}, but it has {size} instead."
    );
    Err(Error::parameter(
        path,
        &format!("{kind}_{code}_{what}"),
        message,
    ))
}

fn wrong_type(path: &str, expected: &str, value: &Value) -> Error {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a decimal",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    let message =
        format!("Invalid type for '{path}': expected {expected}, but got {found} instead.");
    Error::parameter(path, "invalid_type", message)
}

impl Shape {
    fn expected(&self) -> &'static str {
        match self {
            Self::Text(_) | Self::Name | Self::OneOf(_) => "a string",
            Self::Flag => "a boolean",
            Self::Integer(_) => "an integer",
            Self::Number(_) => "a decimal",
            Self::List(..) => "an array",
            Self::Object(_) | Self::Tagged(_) | Self::Metadata | Self::Open => "an object",
            Self::Or(_, other) => other.expected(),
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}
