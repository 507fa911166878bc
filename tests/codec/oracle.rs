//! A JSON reader of the tests' own, which loses nothing, and what the codec must make of a document
//! by the rules of `runs_gateway::json`.
//!
//! Must hold: it shares no code with the codec, and two values are equal iff they are the same JSON
//! value: numbers with all their digits, strings by their UTF-16 units (so that half surrogate
//! pairs count), objects in any order, the last of duplicate members. `serde_json::Value` cannot be
//! this oracle: it rejects `1e400` and half surrogate pairs, and rounds.

use std::collections::BTreeMap;

use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage, Value,
};

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Number(Number),
    Text(Vec<u16>),
    List(Vec<Json>),
    Object(Members),
}

pub(crate) type Members = BTreeMap<Vec<u16>, Json>;

/// Digits without zeros at either end, and the power of ten of the last one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Number {
    negative: bool,
    digits: String,
    exponent: i128,
}

impl Number {
    fn of(text: &str) -> Self {
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all: Vec<char> = whole
            .chars()
            .chain(fraction.chars())
            .filter(char::is_ascii_digit)
            .collect();
        let first = all
            .iter()
            .position(|digit| *digit != '0')
            .unwrap_or(all.len());
        let last = all
            .iter()
            .rposition(|digit| *digit != '0')
            .map_or(first, |last| last + 1);
        // Beyond what an i128 holds one is like the other: far from all that a machine number
        // holds.
        let out_of_range = if exponent.starts_with('-') {
            i128::MIN / 2
        } else {
            i128::MAX / 2
        };
        let exponent = exponent.parse().unwrap_or(out_of_range);
        let shift = (all.len() - last) as i128 - fraction.len() as i128;
        let digits: String = all[first..last].iter().collect();
        if digits.is_empty() {
            return Self {
                negative: false,
                digits,
                exponent: 0,
            };
        }
        Self {
            negative: text.starts_with('-'),
            digits,
            exponent: exponent + shift,
        }
    }

    fn integer(&self) -> Option<i128> {
        let zeros = usize::try_from(self.exponent)
            .ok()
            .filter(|zeros| zeros + self.digits.len() <= 30)?;
        let sign = if self.negative { "-" } else { "" };
        format!("{sign}0{}{}", self.digits, "0".repeat(zeros))
            .parse()
            .ok()
    }

    fn is_a_double(&self) -> bool {
        let sign = if self.negative { "-" } else { "" };
        let value: f64 = format!("{sign}0{}e{}", self.digits, self.exponent)
            .parse()
            .expect("a number");
        value.is_finite() && Self::of(&format!("{value:e}")) == *self
    }
}

/// Reads text that is known to be JSON.
pub(crate) fn parse(text: &[u8]) -> Json {
    let mut reader = Reader {
        text: std::str::from_utf8(text).expect("JSON is UTF-8"),
        at: 0,
    };
    let json = reader.value();
    assert_eq!(reader.peek(), None, "more than one value");
    json
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn peek(&mut self) -> Option<char> {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
        self.text[self.at..].chars().next()
    }

    fn expect(&mut self, token: &str) {
        self.peek();
        assert!(
            self.text[self.at..].starts_with(token),
            "expected {token} at {} of {}",
            self.at,
            self.text
        );
        self.at += token.len();
    }

    fn value(&mut self) -> Json {
        match self.peek().expect("a value") {
            'n' => {
                self.expect("null");
                Json::Null
            }
            't' => {
                self.expect("true");
                Json::Bool(true)
            }
            'f' => {
                self.expect("false");
                Json::Bool(false)
            }
            '"' => Json::Text(self.string()),
            '[' => Json::List(self.entries("[", "]", Self::value)),
            '{' => {
                let members = self.entries("{", "}", |reader| {
                    reader.peek();
                    let name = reader.string();
                    reader.expect(":");
                    (name, reader.value())
                });
                // Of duplicates the map keeps the last.
                Json::Object(members.into_iter().collect())
            }
            _ => {
                let rest = &self.text[self.at..];
                let end = rest.find(|letter: char| {
                    !letter.is_ascii_alphanumeric() && !"+-.".contains(letter)
                });
                let token = &rest[..end.unwrap_or(rest.len())];
                self.at += token.len();
                Json::Number(Number::of(token))
            }
        }
    }

    fn entries<T>(&mut self, open: &str, close: &str, entry: impl Fn(&mut Self) -> T) -> Vec<T> {
        self.expect(open);
        let mut entries = Vec::new();
        while !close.starts_with(self.peek().expect("an entry or the end")) {
            if !entries.is_empty() {
                self.expect(",");
            }
            entries.push(entry(self));
        }
        self.expect(close);
        entries
    }

    fn string(&mut self) -> Vec<u16> {
        self.expect("\"");
        let mut units = Vec::new();
        loop {
            let letter = self.text[self.at..]
                .chars()
                .next()
                .expect("the end of a string");
            self.at += letter.len_utf8();
            if letter == '"' {
                return units;
            }
            if letter != '\\' {
                units.extend_from_slice(letter.encode_utf16(&mut [0; 2]));
                continue;
            }
            let escape = self.text.as_bytes()[self.at];
            self.at += 1;
            units.push(match escape {
                b'u' => {
                    self.at += 4;
                    u16::from_str_radix(&self.text[self.at - 4..self.at], 16).expect("hex digits")
                }
                b'b' => 8,
                b'f' => 12,
                b'n' => 10,
                b'r' => 13,
                b't' => 9,
                other => u16::from(other),
            });
        }
    }
}

/// Whether the JSON mirrors an object: whether there is a place for what does not fit.
pub(crate) fn is_object(message: &MessageDescriptor) -> bool {
    message.get_field_by_name("extra_json").is_some()
}

/// Whether this message is a bare value or an object.
pub(crate) fn bare(message: &MessageDescriptor) -> Vec<FieldDescriptor> {
    let bare: &[&str] = match message.name() {
        "ToolChoice" | "ResponseFormat" => &["mode"],
        "MessageContent" => &["text", "parts"],
        _ => &[],
    };
    bare.iter()
        .map(|name| message.get_field_by_name(name).expect("a bare form"))
        .collect()
}

/// The member that a field mirrors.
pub(crate) fn member(field: &FieldDescriptor) -> &str {
    field.name().strip_suffix("_json").unwrap_or(field.name())
}

/// The fields that mirror members, by the member's name.
fn field(message: &MessageDescriptor, name: &[u16]) -> Option<FieldDescriptor> {
    let name = String::from_utf16(name).ok()?;
    let bare = bare(message);
    message.fields().find(|field| {
        member(field) == name && field.name() != "extra_json" && !bare.contains(field)
    })
}

/// The JSON strings of an enum's values.
pub(crate) fn names(field: &FieldDescriptor) -> Vec<String> {
    let Kind::Enum(of) = field.kind() else {
        return Vec::new();
    };
    let prefix = of
        .get_value(0)
        .expect("a zero value")
        .name()
        .trim_end_matches("UNSPECIFIED")
        .to_owned();
    of.values()
        .filter(|value| value.number() != 0)
        .map(|value| value.name()[prefix.len()..].to_lowercase())
        .collect()
}

/// What a field makes of a value that writing it would not give back: nothing at all.
fn is_unset(json: &Json, field: &FieldDescriptor) -> bool {
    match json {
        Json::Null => true,
        Json::List(list) => list.is_empty() && field.is_list() && !field.is_map(),
        Json::Object(members) => members.is_empty() && field.is_map(),
        _ => false,
    }
}

/// Whether a field can hold a value.
fn fits(json: &Json, field: &FieldDescriptor) -> bool {
    if is_unset(json, field) || field.name().ends_with("_json") {
        return true;
    }
    let utf8 = |text: &Vec<u16>| String::from_utf16(text).is_ok();
    match json {
        _ if field.is_map() => match json {
            Json::Object(members) => members
                .iter()
                .all(|(name, value)| utf8(name) && matches!(value, Json::Text(text) if utf8(text))),
            _ => false,
        },
        Json::List(list) if field.is_list() => match field.kind() {
            Kind::Message(_) => true,
            _ => list
                .iter()
                .all(|one| matches!(one, Json::Text(text) if utf8(text))),
        },
        _ if field.is_list() => false,
        _ => match (json, field.kind()) {
            (Json::Bool(_), Kind::Bool) => true,
            (Json::Number(number), Kind::Int32) => number
                .integer()
                .is_some_and(|number| i32::try_from(number).is_ok()),
            (Json::Number(number), Kind::Int64) => number
                .integer()
                .is_some_and(|number| i64::try_from(number).is_ok()),
            (Json::Number(number), Kind::Double) => number.is_a_double(),
            (Json::Number(number), Kind::Message(message)) if message.name() == "Timestamp" => {
                number
                    .integer()
                    .is_some_and(|seconds| (-62_135_596_800..=253_402_300_799).contains(&seconds))
            }
            (Json::Text(text), Kind::String) => {
                utf8(text) && (field.supports_presence() || !text.is_empty())
            }
            (Json::Text(text), Kind::Enum(_)) => names(field)
                .iter()
                .any(|name| name.encode_utf16().eq(text.iter().copied())),
            (Json::Object(_), Kind::Message(message)) => is_object(&message),
            (Json::Text(_) | Json::List(_), Kind::Message(message)) => {
                bare(&message).iter().any(|bare| fits(json, bare))
            }
            _ => false,
        },
    }
}

/// The value without the members that mean "unset": what reading and writing gives back.
pub(crate) fn normal(json: &Json, message: &MessageDescriptor) -> Json {
    match json {
        Json::Object(members) if is_object(message) => {
            let kept = members.iter().filter_map(|(name, value)| {
                let Some(field) = field(message, name) else {
                    return Some((name.clone(), value.clone()));
                };
                (!is_unset(value, &field)).then(|| (name.clone(), normal_value(value, &field)))
            });
            Json::Object(kept.collect())
        }
        _ => match bare(message).iter().find(|bare| fits(json, bare)) {
            Some(bare) => normal_value(json, bare),
            None => json.clone(),
        },
    }
}

fn normal_value(json: &Json, field: &FieldDescriptor) -> Json {
    match (json, field.kind()) {
        _ if !fits(json, field) || field.is_map() => json.clone(),
        (Json::List(list), Kind::Message(message)) if field.is_list() => {
            Json::List(list.iter().map(|one| normal(one, &message)).collect())
        }
        (_, Kind::Message(message)) => normal(json, &message),
        _ => json.clone(),
    }
}

/// Checks that `message`, read from `json`, has in `extra_json` exactly the members that it does
/// not name or cannot hold, and so on within. Gives how many members are there.
pub(crate) fn extra(json: &Json, message: &DynamicMessage, place: &str) -> Result<usize, String> {
    let descriptor = message.descriptor();
    if !is_object(&descriptor) {
        let Json::List(list) = json else { return Ok(0) };
        return extra_of_list(list, message, &bare(&descriptor)[1], place);
    }
    let found = message
        .get_field_by_name("extra_json")
        .and_then(|text| text.as_str().map(str::to_owned))
        .unwrap_or_default();
    let Json::Object(members) = json else {
        let fitting = bare(&descriptor).iter().any(|bare| fits(json, bare));
        let right = if fitting {
            found.is_empty()
        } else {
            !found.is_empty() && parse(found.as_bytes()) == *json
        };
        return if right {
            Ok(usize::from(!fitting))
        } else {
            Err(format!("{place} is {json:?} with extra_json {found}"))
        };
    };
    let unfit = |(name, value): &(&Vec<u16>, &Json)| {
        !field(&descriptor, name).is_some_and(|field| fits(value, &field))
    };
    let expected: Members = members
        .iter()
        .filter(unfit)
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut count = expected.len();
    let right = if expected.is_empty() {
        found.is_empty()
    } else {
        parse(found.as_bytes()) == Json::Object(expected.clone())
    };
    if !right {
        return Err(format!(
            "{place}.extra_json is {found:?}, but should have {:?}",
            Json::Object(expected)
        ));
    }
    let held = |field: &FieldDescriptor| {
        members.iter().any(|entry| {
            !unfit(&entry) && self::field(&descriptor, entry.0).as_ref() == Some(field)
        })
    };
    if let Some(field) = descriptor
        .fields()
        .find(|field| message.has_field(field) && field.name() != "extra_json" && !held(field))
    {
        return Err(format!(
            "{place}.{} is set, though no member fits it",
            field.name()
        ));
    }
    for (name, value) in members.iter().filter(|member| !unfit(member)) {
        let field = field(&descriptor, name).expect("it fits");
        let place = format!("{place}.{}", field.name());
        let is_mirror = field
            .kind()
            .as_message()
            .is_some_and(|message| message.package_name() == "runsgateway.v1");
        match value {
            _ if is_unset(value, &field) => {
                if message.has_field(&field) {
                    return Err(format!("{place} is set"));
                }
            }
            Json::List(list) if is_mirror && field.is_list() => {
                count += extra_of_list(list, message, &field, &place)?;
            }
            _ if is_mirror && !field.is_map() => match &*message.get_field(&field) {
                Value::Message(within) => count += extra(value, within, &place)?,
                other => return Err(format!("{place} is {other:?}")),
            },
            // Lists of strings, times and plain values: that they are right, not only there, shows
            // in what is written.
            _ => {
                if !message.has_field(&field) {
                    return Err(format!("{place} is not set"));
                }
            }
        }
    }
    Ok(count)
}

fn extra_of_list(
    list: &[Json],
    message: &DynamicMessage,
    field: &FieldDescriptor,
    place: &str,
) -> Result<usize, String> {
    let value = message.get_field(field);
    let elements = value.as_list().unwrap_or_default();
    if elements.len() != list.len() {
        return Err(format!(
            "{place} has {} elements instead of {}",
            elements.len(),
            list.len()
        ));
    }
    let mut count = 0;
    for (at, (one, element)) in list.iter().zip(elements).enumerate() {
        let element = element
            .as_message()
            .ok_or(format!("{place}[{at}] is no message"))?;
        count += extra(one, element, &format!("{place}[{at}]"))?;
    }
    Ok(count)
}
