//! Writing: one function per kind of field, called by the generated lines.
//!
//! Must hold: what is written is JSON, whatever the message holds, or there is a [`Violation`];
//! fields first, then `extra_json`; on a request no member is written twice and none that the
//! gateway owns comes from `extra_json`.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
};

use prost_types::Timestamp;

use super::{Cursor, Names, Object, Value, cursor, decimal, names, one_value, read};

/// A field that cannot be written:
///
/// - `extra_json` that is not exactly one JSON object, names a member that is also set as a field,
///   or one that the gateway sets itself, in whatever case of letters;
/// - `…_json` that is not one JSON value;
/// - an enum number without a name; NaN or an infinity; a time with a fraction or out of range;
/// - a bare form together with other fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The field's path in the message, such as `tools[0].function.parameters_json`.
    pub field: String,
    /// What is wrong, in words for whoever set the field. Holds no value of the message.
    pub description: String,
}

impl Violation {
    fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            description: description.into(),
        }
    }

    /// The same violation in a message that holds the message as field `parent`.
    #[must_use]
    pub fn within(mut self, parent: &str) -> Self {
        let separator = if self.field.is_empty() { "" } else { "." };
        self.field = format!("{parent}{separator}{}", self.field);
        self
    }

    pub(crate) fn not_alone(field: &str) -> Self {
        Self::new(field, "excludes all other fields of its message")
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.field, self.description)
    }
}

impl std::error::Error for Violation {}

type Written = Result<(), Violation>;

/// What is written for a field that is not set.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Empty {
    /// Nothing.
    Omitted,
    /// `[]` for lists, `{}` for maps, `null` for all else.
    Written,
}

/// Where a value goes, and by which rules.
pub(crate) struct Writer<'a> {
    out: &'a mut Vec<u8>,
    /// On requests: the members of this very value that the gateway sets itself.
    request: Option<&'a [&'a str]>,
}

impl<'a> Writer<'a> {
    pub(super) fn document(out: &'a mut Vec<u8>) -> Self {
        Self { out, request: None }
    }

    pub(super) fn request(out: &'a mut Vec<u8>, owned: &'a [&'a str]) -> Self {
        Self {
            out,
            request: Some(owned),
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "one signature for every rule")]
    pub(crate) fn empty_list(&mut self) -> Written {
        self.out.extend_from_slice(b"[]");
        Ok(())
    }

    pub(crate) fn bare_name<N: Names>(&mut self, number: i32) -> Written {
        let name = N::name(number).ok_or_else(|| Violation::new("mode", no_name(number)))?;
        string(self.out, name);
        Ok(())
    }

    #[expect(clippy::unnecessary_wraps, reason = "one signature for every rule")]
    pub(crate) fn bare_text(&mut self, text: Option<&str>) -> Written {
        string(self.out, text.unwrap_or_default());
        Ok(())
    }

    pub(crate) fn bare_objects<M: Object>(&mut self, messages: &[M]) -> Written {
        list(self.out, self.request.is_some(), messages).map_err(|violation| Violation {
            field: format!("parts{}", violation.field),
            ..violation
        })
    }

    /// An object: its fields, then its `extra_json`.
    pub(crate) fn object_value<M: Object>(&mut self, message: &M) -> Written {
        let extra = message.extra();
        let violation = |description: String| Violation::new("extra_json", description);
        let mut added = HashSet::new();
        if !extra.is_empty() {
            let is_object =
                Cursor::new(extra.as_bytes()).is_ok_and(|mut cursor| cursor.peek() == b'{');
            if self.request.is_none() && !is_object {
                // An element that was not an object.
                return json(self.out, extra).map_err(violation);
            }
            added = names(extra).map_err(|error| {
                violation(format!("must be empty or one JSON object ({error})"))
            })?;
        }
        if self.request.is_some() {
            added = added.iter().map(|name| folded(name)).collect();
        }
        let owned = self.request.unwrap_or_default();
        if let Some(name) = owned.iter().find(|name| added.contains(name.as_bytes())) {
            return Err(violation(format!(
                "must not name {name:?}: the gateway sets it"
            )));
        }
        self.out.push(b'{');
        let mut members = ObjectWriter {
            out: self.out,
            request: self.request.is_some(),
            added: &added,
            twice: None,
        };
        message.write(&mut members)?;
        if let Some(name) = members.twice {
            return Err(violation(format!(
                "names {name:?}, which is also set as a field (in whatever case)"
            )));
        }
        if !added.is_empty() {
            separate(self.out);
            let object = extra.trim_ascii();
            self.out
                .extend_from_slice(&object.as_bytes()[1..object.len() - 1]);
        }
        self.out.push(b'}');
        Ok(())
    }
}

/// A name as services read it that do not tell cases of letters apart: all letters that are one
/// letter in upper case are one here, such as `S`, `s` and `\u{17f}`.
fn folded(name: &[u8]) -> Vec<u8> {
    let name = String::from_utf8_lossy(name);
    let folded = name.chars().flat_map(char::to_uppercase);
    folded
        .flat_map(char::to_lowercase)
        .collect::<String>()
        .into()
}

/// Where the members of one object go.
pub(crate) struct ObjectWriter<'a> {
    out: &'a mut Vec<u8>,
    request: bool,
    /// The members that `extra_json` adds, on a request [`folded`].
    added: &'a HashSet<Vec<u8>>,
    /// On a request, a member that stands in a field and in `extra_json`.
    twice: Option<String>,
}

impl ObjectWriter<'_> {
    fn key(&mut self, name: &str) {
        if self.request && self.added.contains(name.as_bytes()) {
            self.twice = Some(name.to_owned());
        }
        separate(self.out);
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// Writes an unset field's empty form, unless the member is in `extra_json`.
    #[expect(clippy::unnecessary_wraps, reason = "one signature for every rule")]
    fn empty(&mut self, name: &str, empty: Empty, form: &str) -> Written {
        if empty == Empty::Written && !self.request && !self.added.contains(name.as_bytes()) {
            self.key(name);
            self.out.extend_from_slice(form.as_bytes());
        }
        Ok(())
    }

    pub(crate) fn text(&mut self, name: &str, text: &str, empty: Empty) -> Written {
        self.optional_text(name, Some(text).filter(|text| !text.is_empty()), empty)
    }

    pub(crate) fn optional_text(
        &mut self,
        name: &str,
        text: Option<&str>,
        empty: Empty,
    ) -> Written {
        let Some(text) = text else {
            return self.empty(name, empty, "null");
        };
        self.key(name);
        string(self.out, text);
        Ok(())
    }

    pub(crate) fn json(&mut self, name: &str, text: &str, empty: Empty) -> Written {
        if text.is_empty() {
            return self.empty(name, empty, "null");
        }
        self.key(name);
        json(self.out, text)
            .map_err(|description| Violation::new(format!("{name}_json"), description))
    }

    pub(crate) fn flag(&mut self, name: &str, flag: Option<bool>, empty: Empty) -> Written {
        let Some(flag) = flag else {
            return self.empty(name, empty, "null");
        };
        self.key(name);
        self.out
            .extend_from_slice(if flag { b"true" } else { b"false" });
        Ok(())
    }

    pub(crate) fn integer(&mut self, name: &str, number: Option<i64>, empty: Empty) -> Written {
        let Some(number) = number else {
            return self.empty(name, empty, "null");
        };
        self.key(name);
        decimal_integer(self.out, number);
        Ok(())
    }

    pub(crate) fn number(&mut self, name: &str, number: Option<f64>, empty: Empty) -> Written {
        let Some(number) = number else {
            return self.empty(name, empty, "null");
        };
        if !number.is_finite() {
            return Err(Violation::new(name, "must be a finite number"));
        }
        self.key(name);
        self.out.extend_from_slice(decimal::text(number).as_bytes());
        Ok(())
    }

    pub(crate) fn time(&mut self, name: &str, time: Option<&Timestamp>, empty: Empty) -> Written {
        let Some(time) = time else {
            return self.empty(name, empty, "null");
        };
        if time.nanos != 0 || !read::TIMES.contains(&time.seconds) {
            return Err(Violation::new(
                name,
                "must be a whole number of seconds in the years 1 to 9999",
            ));
        }
        self.integer(name, Some(time.seconds), empty)
    }

    pub(crate) fn name<N: Names>(&mut self, name: &str, number: i32, empty: Empty) -> Written {
        if number == 0 {
            return self.empty(name, empty, "null");
        }
        let value = N::name(number).ok_or_else(|| Violation::new(name, no_name(number)))?;
        self.optional_text(name, Some(value), empty)
    }

    /// The `type` of a tagged message. On requests it is inferred when exactly one payload is set.
    pub(crate) fn tag<N: Names>(&mut self, number: i32, payloads: &[(i32, bool)]) -> Written {
        let mut set = payloads.iter().filter(|(_, set)| *set);
        let inferred = match (number, set.next(), set.next()) {
            (0, Some((only, _)), None) if self.request && !self.added.contains(&b"type"[..]) => {
                *only
            }
            _ => number,
        };
        self.name::<N>("type", inferred, Empty::Omitted)
    }

    pub(crate) fn texts(&mut self, name: &str, texts: &[String], empty: Empty) -> Written {
        if texts.is_empty() {
            return self.empty(name, empty, "[]");
        }
        self.key(name);
        self.out.push(b'[');
        for text in texts {
            separate(self.out);
            string(self.out, text);
        }
        self.out.push(b']');
        Ok(())
    }

    pub(crate) fn map(
        &mut self,
        name: &str,
        map: &BTreeMap<String, String>,
        empty: Empty,
    ) -> Written {
        if map.is_empty() {
            return self.empty(name, empty, "{}");
        }
        self.key(name);
        self.out.push(b'{');
        for (name, value) in map {
            separate(self.out);
            string(self.out, name);
            self.out.push(b':');
            string(self.out, value);
        }
        self.out.push(b'}');
        Ok(())
    }

    pub(crate) fn object<M: Value>(
        &mut self,
        name: &str,
        message: Option<&M>,
        empty: Empty,
    ) -> Written {
        let Some(message) = message else {
            return self.empty(name, empty, "null");
        };
        self.key(name);
        // What the gateway owns it owns at the top.
        message
            .write_value(&mut Writer {
                out: self.out,
                request: self.request.then_some(&[]),
            })
            .map_err(|violation| violation.within(name))
    }

    pub(crate) fn objects<M: Object>(
        &mut self,
        name: &str,
        messages: &[M],
        empty: Empty,
    ) -> Written {
        if messages.is_empty() {
            return self.empty(name, empty, "[]");
        }
        self.key(name);
        list(self.out, self.request, messages).map_err(|violation| Violation {
            field: format!("{name}{}", violation.field),
            ..violation
        })
    }
}

fn list<M: Object>(out: &mut Vec<u8>, request: bool, messages: &[M]) -> Written {
    out.push(b'[');
    for (at, message) in messages.iter().enumerate() {
        separate(out);
        let mut writer = Writer {
            out,
            request: request.then_some(&[]),
        };
        message
            .write_value(&mut writer)
            .map_err(|violation| violation.within(&format!("[{at}]")))?;
    }
    out.push(b']');
    Ok(())
}

fn no_name(number: i32) -> String {
    format!(
        "{number} is not a value that this contract names; send an unknown string by way of extra_json"
    )
}

/// A comma, unless this is the first entry: nothing else that is written ends in an opening
/// bracket.
fn separate(out: &mut Vec<u8>) {
    if !matches!(out.last(), Some(b'{' | b'[')) {
        out.push(b',');
    }
}

/// JSON text, checked to be one value.
fn json(out: &mut Vec<u8>, text: &str) -> Result<(), String> {
    one_value(text.as_bytes()).map_err(|error| format!("must be one JSON value ({error})"))?;
    out.extend_from_slice(text.trim_ascii().as_bytes());
    Ok(())
}

fn decimal_integer(out: &mut Vec<u8>, number: i64) {
    use std::io::Write as _;
    // Writing to a vector cannot fail.
    let _ = write!(out, "{number}");
}

fn string(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    out.push(b'"');
    let mut at = 0;
    loop {
        let run = cursor::plain(&bytes[at..]);
        out.extend_from_slice(&bytes[at..at + run]);
        at += run;
        let Some(byte) = bytes.get(at) else { break };
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.extend([
                    HEX[usize::from(control >> 4)],
                    HEX[usize::from(control & 15)],
                ]);
            }
        }
        at += 1;
    }
    out.push(b'"');
}
