//! Documents: generated from the contract's descriptors, then damaged in the ways that services and
//! attackers depart from a schema.
//!
//! Must hold: a document is a function of its seed. Unguided random JSON would find little: nearly
//! all of it is "unknown member".

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

use crate::oracle;

/// A generator of numbers, small and good enough (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("it is below a usize")
    }

    /// True once in `times`.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn one<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }
}

/// A JSON document as text: any tokens, any duplicates.
#[derive(Debug, Clone)]
pub(crate) enum Doc {
    /// The text of one value.
    Text(String),
    List(Vec<Doc>),
    /// Names with quotes and escapes as they stand in the text.
    Object(Vec<(String, Doc)>),
}

impl Doc {
    /// The text, with white space here and there.
    pub(crate) fn print(&self, random: &mut Random) -> String {
        let mut out = String::new();
        self.print_to(random, &mut out);
        out
    }

    fn print_to(&self, random: &mut Random, out: &mut String) {
        let space = |random: &mut Random, out: &mut String| {
            if random.once_in(12) {
                out.push_str(random.one(&[" ", "\n  ", "\t", "\r\n"]));
            }
        };
        space(random, out);
        match self {
            Self::Text(text) => out.push_str(text),
            Self::List(list) => {
                out.push('[');
                for (at, one) in list.iter().enumerate() {
                    out.push_str(if at > 0 { "," } else { "" });
                    one.print_to(random, out);
                }
                out.push(']');
            }
            Self::Object(members) => {
                out.push('{');
                for (at, (name, value)) in members.iter().enumerate() {
                    out.push_str(if at > 0 { "," } else { "" });
                    space(random, out);
                    out.push_str(name);
                    space(random, out);
                    out.push(':');
                    value.print_to(random, out);
                }
                out.push('}');
            }
        }
        if random.once_in(12) {
            out.push('\n');
        }
    }

    /// How many lists and objects are within each other at most.
    pub(crate) fn depth(&self) -> usize {
        match self {
            Self::Text(text) => {
                usize::from(text.starts_with("[[")) + usize::from(text.starts_with(['[', '{']))
            }
            Self::List(list) => 1 + list.iter().map(Self::depth).max().unwrap_or_default(),
            Self::Object(members) => {
                1 + members
                    .iter()
                    .map(|(_, value)| value.depth())
                    .max()
                    .unwrap_or_default()
            }
        }
    }

    /// How many values there are, this one and all within.
    fn places(&self) -> usize {
        let within: usize = match self {
            Self::Text(_) => 0,
            Self::List(list) => list.iter().map(Self::places).sum(),
            Self::Object(members) => members.iter().map(|(_, value)| value.places()).sum(),
        };
        1 + within
    }

    /// The value of this number, outermost first.
    fn place(&mut self, number: &mut usize) -> Option<&mut Self> {
        if *number == 0 {
            return Some(self);
        }
        *number -= 1;
        match self {
            Self::Text(_) => None,
            Self::List(list) => list.iter_mut().find_map(|one| one.place(number)),
            Self::Object(members) => members
                .iter_mut()
                .find_map(|(_, value)| value.place(number)),
        }
    }
}

/// A document that is valid under the schema.
pub(crate) fn valid(message: &MessageDescriptor, random: &mut Random) -> Doc {
    let bare = oracle::bare(message);
    if !bare.is_empty() && (!oracle::is_object(message) || random.once_in(2)) {
        let form = &bare[random.below(bare.len())];
        return value(form, random);
    }
    let mut members = Vec::new();
    for field in message
        .fields()
        .filter(|field| field.name() != "extra_json" && !bare.contains(field))
    {
        match random.below(12) {
            0 | 1 => {}
            2 => members.push((
                token(oracle::member(&field), random),
                Doc::Text("null".into()),
            )),
            _ => members.push((token(oracle::member(&field), random), value(&field, random))),
        }
    }
    // Members come in any order.
    for at in (1..members.len()).rev() {
        members.swap(at, random.below(at + 1));
    }
    Doc::Object(members)
}

fn value(field: &FieldDescriptor, random: &mut Random) -> Doc {
    let few = if random.once_in(6) { 4 } else { 2 };
    if field.is_map() {
        let pairs =
            (0..random.below(few + 1)).map(|at| (token(&format!("key{at}"), random), text(random)));
        return Doc::Object(pairs.collect());
    }
    if field.is_list() {
        return Doc::List(
            (0..random.below(few + 1))
                .map(|_| single(field, random))
                .collect(),
        );
    }
    single(field, random)
}

fn single(field: &FieldDescriptor, random: &mut Random) -> Doc {
    let token = match field.kind() {
        Kind::Message(message) if message.name() == "Timestamp" => random
            .one(&[
                "0",
                "1764672000",
                "1764672001.0",
                "17646720e2",
                "-1",
                "253402300799",
            ])
            .to_owned(),
        Kind::Message(message) => return valid(&message, random),
        Kind::String if field.name().ends_with("_json") => return any(random, 4),
        Kind::String if field.supports_presence() || field.is_list() => return text(random),
        // Empty ids and names are not in their field: empty means unset there.
        Kind::String => token(&format!("id_{}", random.below(1000)), random),
        Kind::Enum(_) => {
            let names = oracle::names(field);
            token(&names[random.below(names.len())], random)
        }
        Kind::Bool => random.one(&["true", "false"]).to_owned(),
        Kind::Int32 => random
            .one(&[
                "0",
                "-0",
                "1",
                "5.0",
                "5e0",
                "100",
                "2147483647",
                "-2147483648",
                "21474836.47e2",
            ])
            .to_owned(),
        Kind::Int64 => random
            .one(&[
                "0",
                "1",
                "256",
                "5.0",
                "1E3",
                "9007199254740993",
                "9223372036854775807",
                "-9223372036854775808.0",
            ])
            .to_owned(),
        Kind::Double => match random.below(3) {
            0 => format!("{:?}", f64::from_bits(random.next() >> 2)),
            1 => format!("{}.{:02}", random.below(3), random.below(100)),
            _ => random
                .one(&[
                    "0",
                    "-0.0",
                    "1",
                    "1.0",
                    "1e0",
                    "0.7",
                    "0.30000001192092896",
                    "1e22",
                    "5e-324",
                    "2.50e+1",
                ])
                .to_owned(),
        },
        other => panic!("no values for {other:?}"),
    };
    Doc::Text(token)
}

/// A string token for a text: letters escaped here and there.
fn token(text: &str, random: &mut Random) -> String {
    let mut out = String::from("\"");
    let escapes = random.once_in(8);
    for letter in text.chars() {
        if matches!(letter, '"' | '\\') || letter < ' ' || (escapes && random.once_in(4)) {
            for unit in letter.encode_utf16(&mut [0; 2]) {
                let escape = if random.once_in(2) {
                    format!("\\u{unit:04x}")
                } else {
                    format!("\\u{unit:04X}")
                };
                out.push_str(&escape);
            }
        } else {
            out.push(letter);
        }
    }
    out.push('"');
    out
}

fn text(random: &mut Random) -> Doc {
    const PIECES: [&str; 14] = [
        "",
        "a",
        "Zürich",
        "\"",
        "\\",
        "\n",
        "\u{0}",
        "\u{1f}",
        "\u{7f}",
        "😀",
        "日本",
        "\u{2028}",
        "{}[],:",
        "a longer piece of plain text",
    ];
    let pieces: String = (0..random.below(5))
        .map(|_| *random.one(&PIECES.each_ref()))
        .collect();
    let written = match random.below(4) {
        0 => r#""\/\b\f\n\r\t\\\"\ud83d\ude00""#.to_owned(),
        _ => token(&pieces, random),
    };
    Doc::Text(written)
}

/// Values that come close to what some field holds.
const NASTY: [&str; 55] = [
    "null",
    "true",
    "false",
    "0",
    "-0",
    "-0.0",
    "5.0",
    "5e0",
    "50e-1",
    "1.5",
    "-1",
    "1e3",
    "2147483648",
    "-2147483649",
    "253402300800",
    "-62135596801",
    "9007199254740993",
    "9223372036854775808",
    "-9223372036854775809",
    "18446744073709551616",
    "1e400",
    "-1e400",
    "1e-400",
    "0e400",
    "1e999999999",
    "1e99999999999999999",
    "1e-999999999",
    "0.1000000000000000055",
    "123456789012345678901234567890.123456789",
    "1.7976931348623159e308",
    "\"\"",
    "\"auto\"",
    "\"none\"",
    "\"function\"",
    "\"queued\"",
    "\"unspecified\"",
    "\"RUN_STATUS_QUEUED\"",
    "\"Queued\"",
    "\"dreaming\"",
    "\"5\"",
    "\"\\ud800\"",
    "\"\\udc00\\ud800\"",
    "\"\\ud800\\ud800\\udc00\"",
    "\"\\u0000\"",
    "\"\\ud800\\ue000\"",
    "\"\\udbff\\udfff\\uffff\"",
    "[]",
    "{}",
    "[[]]",
    "[null]",
    "[\"a\",1]",
    "[\"a\",\"\\ud800\"]",
    "{\"a\":1,\"a\":\"b\"}",
    "{\"a\":\"b\",\"\\u0061\":1}",
    "{\"\\udfff\":\"a\"}",
];

/// Names that are no member anywhere, or not where they are put.
const NAMES: [&str; 16] = [
    "\"made_up\"",
    "\"extra_json\"",
    "\"mode\"",
    "\"parts\"",
    "\"text\"",
    "\"parameters_json\"",
    "\"parameters\"",
    "\"stream\"",
    "\"\"",
    "\"\\ud800\"",
    "\"\\ud800\\ud800\"",
    "\"a\\\"b\"",
    "\"type \"",
    "\"Type\"",
    "\"\\u0000\"",
    "\"r#type\"",
];

/// Any JSON.
fn any(random: &mut Random, depth: usize) -> Doc {
    match random.below(if depth == 0 { 6 } else { 9 }) {
        0 => text(random),
        1..6 => Doc::Text((*random.one(&NASTY.each_ref())).to_owned()),
        6 | 7 => Doc::Object(
            (0..random.below(4))
                .map(|_| {
                    (
                        random.one(&NAMES.each_ref()).to_string(),
                        any(random, depth - 1),
                    )
                })
                .collect(),
        ),
        _ => Doc::List(
            (0..random.below(4))
                .map(|_| any(random, depth - 1))
                .collect(),
        ),
    }
}

/// A value within `levels` lists and objects.
fn deep(levels: usize, random: &mut Random) -> Doc {
    let mut doc = any(random, 0);
    for _ in 0..levels {
        doc = if random.once_in(2) {
            Doc::List(vec![doc])
        } else {
            Doc::Object(vec![("\"deep\"".into(), doc)])
        };
    }
    doc
}

/// Damages a document in one to four places. The outermost value stays an object.
pub(crate) fn damage(doc: &mut Doc, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let mut number = random.below(doc.places());
        let top = number == 0;
        let Some(place) = doc.place(&mut number) else {
            continue;
        };
        let bad = match random.below(16) {
            0 => {
                // Mostly beyond the bound, or just within.
                let levels = if random.once_in(3) {
                    1000
                } else {
                    100 + random.below(30)
                };
                deep(levels, random)
            }
            1 | 2 => Doc::Text("null".into()),
            _ => any(random, 3),
        };
        match place {
            Doc::Object(members) if top || !random.once_in(4) => spoil(members, bad, random),
            Doc::List(list) if !random.once_in(4) => list.insert(random.below(list.len() + 1), bad),
            place => *place = bad,
        }
    }
}

fn spoil(members: &mut Vec<(String, Doc)>, bad: Doc, random: &mut Random) {
    let at = random.below(members.len() + 1);
    if members.is_empty() || random.once_in(4) {
        return members.insert(at, (random.one(&NAMES.each_ref()).to_string(), bad));
    }
    let which = random.below(members.len());
    let name = &members[which].0;
    match random.below(3) {
        0 => members[which].1 = bad,
        // A duplicate before or behind, the same name or the same name escaped.
        1 => members.insert(at, (name.clone(), bad)),
        _ => {
            let escaped = format!(
                "\"\\u00{:02x}{}",
                name.as_bytes().get(1).copied().unwrap_or(b'x'),
                name.get(2..).unwrap_or("\"")
            );
            let plain = name.len() > 2 && name.is_ascii() && !name.starts_with("\"\\");
            members.insert(at, (if plain { escaped } else { name.clone() }, bad));
        }
    }
}
