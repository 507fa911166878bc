//! Writes the JSON codec of every message that mirrors JSON, in terms of the rules in `src/json`:
//! for each field what leads to it, and one line each way.
//!
//! Must hold: what a message looks like as JSON is derived from its descriptor and from the two
//! tables below, and from nothing else. A field that no rule covers fails the build.
//! `build/sample.rs` shows what comes out for one message.

use std::{error::Error, fmt::Write as _};

use prost_reflect::{
    Cardinality, DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor,
};

/// The last field of every message that mirrors a JSON object.
const EXTRA: (&str, u32) = ("extra_json", 1000);

/// Fields that stand for the whole value instead of a member of it: the JSON is a bare string or
/// list, not an object.
const BARE: [(&str, &[&str]); 3] = [
    ("ToolChoice", &["mode"]),
    ("ResponseFormat", &["mode"]),
    ("MessageContent", &["text", "parts"]),
];

/// Members that services send even when they are empty (`required` in the schema, plus what
/// recordings always have), by message.
const ALWAYS: [(&str, &[&str]); 14] = [
    (
        "Run",
        &[
            "cancelled_at",
            "completed_at",
            "expires_at",
            "failed_at",
            "incomplete_details",
            "instructions",
            "last_error",
            "max_completion_tokens",
            "max_prompt_tokens",
            "metadata",
            "parallel_tool_calls",
            "reasoning_effort",
            "required_action",
            "response_format",
            "started_at",
            "temperature",
            "tool_choice",
            "tool_resources",
            "tools",
            "top_p",
            "truncation_strategy",
            "usage",
        ],
    ),
    (
        "RunStep",
        &[
            "cancelled_at",
            "completed_at",
            "expired_at",
            "expires_at",
            "failed_at",
            "last_error",
            "metadata",
            "usage",
        ],
    ),
    (
        "ThreadMessage",
        &[
            "assistant_id",
            "attachments",
            "completed_at",
            "content",
            "incomplete_at",
            "incomplete_details",
            "metadata",
            "run_id",
        ],
    ),
    ("ThreadResource", &["metadata", "tool_resources"]),
    ("ListRunsResponse", &["data", "first_id", "last_id"]),
    ("ListRunStepsResponse", &["data", "first_id", "last_id"]),
    ("SubmitToolOutputsAction", &["tool_calls"]),
    ("CodeInterpreterCall", &["outputs"]),
    ("FunctionCall", &["output"]),
    ("TextContent", &["annotations"]),
    (
        "Assistant",
        &[
            "description",
            "instructions",
            "metadata",
            "name",
            "reasoning_effort",
            "response_format",
            "temperature",
            "tool_resources",
            "tools",
            "top_p",
        ],
    ),
    ("ListAssistantsResponse", &["data", "first_id", "last_id"]),
    ("ListMessagesResponse", &["data", "first_id", "last_id"]),
    ("ApiError", &["code", "param"]),
];

/// The codec of all messages of a package that mirror JSON, as Rust text to be included where their
/// names are known.
pub(crate) fn generate(pool: &DescriptorPool, package: &str) -> Result<String, Box<dyn Error>> {
    let mut out = String::new();
    for descriptor in pool.all_enums().filter(|it| it.package_name() == package) {
        let names = names(&descriptor)?;
        write!(
            out,
            "impl Names for {} {{\n    fn number(name: &[u8]) -> Option<i32> {{\n        match name {{\n",
            descriptor.name()
        )?;
        for (name, number) in &names {
            writeln!(out, "            b\"{name}\" => Some({number}),")?;
        }
        write!(
            out,
            "            _ => None,\n        }}\n    }}\n    fn name(number: i32) -> Option<&'static str> {{\n        match number {{\n"
        )?;
        for (name, number) in &names {
            writeln!(out, "            {number} => Some(\"{name}\"),")?;
        }
        write!(out, "            _ => None,\n        }}\n    }}\n}}\n\n")?;
    }
    for message in pool
        .all_messages()
        .filter(|it| it.package_name() == package && !it.is_map_entry())
    {
        let bare = row(&BARE, message.name());
        if message
            .get_field_by_name(EXTRA.0)
            .is_some_and(|field| field.number() == EXTRA.1)
        {
            object(&mut out, &message, bare)?;
        } else if !bare.is_empty() {
            bare_only(&mut out, &message, bare)?;
        }
    }
    Ok(out)
}

fn object(
    out: &mut String,
    message: &MessageDescriptor,
    bare: &[&str],
) -> Result<(), Box<dyn Error>> {
    let name = message.name();
    let always = row(&ALWAYS, name);
    let fields = || {
        message
            .fields()
            .filter(|field| field.name() != EXTRA.0 && !bare.contains(&field.name()))
    };
    write!(
        out,
        "impl Object for {name} {{\n    fn field_index(name: &[u8]) -> Option<usize> {{\n        match name {{\n"
    )?;
    for (field_index, field) in fields().enumerate() {
        writeln!(
            out,
            "            b\"{}\" => Some({field_index}),",
            member(&field)
        )?;
    }
    writeln!(out, "            _ => None,\n        }}\n    }}")?;
    // To begin with, each is followed by the next.
    let following: Vec<_> = (0..=fields().count())
        .map(|field_index| format!("AtomicU8::new({field_index})"))
        .collect();
    write!(
        out,
        "    fn following() -> &'static [AtomicU8] {{\n        static FOLLOWING: [AtomicU8; {}] = [{}];\n        &FOLLOWING\n    }}\n    fn read(&mut self, field_index: usize, named: bool, value: &mut Cursor<'_>) -> Read<bool> {{\n        match field_index {{\n",
        following.len(),
        following.join(", ")
    )?;
    for (field_index, field) in fields().enumerate() {
        let lead = format!("{:?}", format!("\"{}\":", member(&field)));
        writeln!(
            out,
            "            {field_index} => Ok((named || value.is_led_by({lead})) && {}?),",
            reader(&field)?
        )?;
    }
    write!(
        out,
        "            _ => Ok(false),\n        }}\n    }}\n    fn write(&self, out: &mut ObjectWriter<'_>) -> Result<(), Violation> {{\n"
    )?;
    for field in fields() {
        let empty = if always.contains(&member(&field)) {
            "Empty::Written"
        } else {
            "Empty::Omitted"
        };
        writeln!(out, "        {}?;", writer(message, &field, empty)?)?;
    }
    write!(
        out,
        "        Ok(())\n    }}\n    fn extra(&self) -> &str {{\n        &self.{0}\n    }}\n    fn extra_mut(&mut self) -> &mut String {{\n        &mut self.{0}\n    }}\n}}\n\n",
        EXTRA.0
    )?;

    write!(
        out,
        "impl Value for {name} {{\n    fn read_value(&mut self, value: &mut Cursor<'_>) -> Read<bool> {{\n"
    )?;
    for field in bare {
        bare_reader(out, message, field)?;
    }
    write!(
        out,
        "        read::object_value(self, value)\n    }}\n    fn write_value(&self, out: &mut Writer<'_>) -> Result<(), Violation> {{\n"
    )?;
    for field in bare {
        bare_writer(out, message, field)?;
    }
    write!(out, "        out.object_value(self)\n    }}\n}}\n\n")?;
    Ok(())
}

fn bare_only(
    out: &mut String,
    message: &MessageDescriptor,
    bare: &[&str],
) -> Result<(), Box<dyn Error>> {
    write!(
        out,
        "impl Value for {} {{\n    fn read_value(&mut self, value: &mut Cursor<'_>) -> Read<bool> {{\n",
        message.name()
    )?;
    for field in bare {
        bare_reader(out, message, field)?;
    }
    write!(
        out,
        "        Ok(false)\n    }}\n    fn write_value(&self, out: &mut Writer<'_>) -> Result<(), Violation> {{\n"
    )?;
    for field in bare {
        bare_writer(out, message, field)?;
    }
    write!(out, "        out.empty_list()\n    }}\n}}\n\n")?;
    Ok(())
}

/// Reads the bare form `field`, or goes back for the next form.
fn bare_reader(
    out: &mut String,
    message: &MessageDescriptor,
    field: &str,
) -> Result<(), Box<dyn Error>> {
    let field = message
        .get_field_by_name(field)
        .ok_or(format!("{}.{field} is not there", message.name()))?;
    writeln!(out, "        let mark = value.mark();")?;
    writeln!(
        out,
        "        if {}? {{\n            return Ok(true);\n        }}",
        reader(&field)?
    )?;
    writeln!(out, "        value.back(mark);")?;
    Ok(())
}

/// Writes the bare form `field` if it is set, and nothing else may be.
fn bare_writer(
    out: &mut String,
    message: &MessageDescriptor,
    field: &str,
) -> Result<(), Box<dyn Error>> {
    let field = message
        .get_field_by_name(field)
        .ok_or(format!("{}.{field} is not there", message.name()))?;
    let expression = format!("self.{}", rust_name(&field));
    let write = match (field.kind(), shape(&field)) {
        (Kind::Enum(names), Shape::Plain) => {
            format!("out.bare_name::<{}>({expression})", names.name())
        }
        (Kind::String, Shape::Optional) => format!("out.bare_text({expression}.as_deref())"),
        (Kind::Message(_), Shape::List) => format!("out.bare_objects(&{expression})"),
        _ => return Err(format!("no rule for the bare form {}", field.full_name()).into()),
    };
    let others = message
        .fields()
        .filter(|other| *other != field)
        .map(|other| is_set(&other))
        .collect::<Vec<_>>()
        .join(" || ");
    writeln!(out, "        if {} {{", is_set(&field))?;
    writeln!(
        out,
        "            return if {others} {{ Err(Violation::not_alone(\"{}\")) }} else {{ {write} }};\n        }}",
        field.name()
    )?;
    Ok(())
}

fn is_set(field: &FieldDescriptor) -> String {
    let expression = format!("self.{}", rust_name(field));
    match (field.kind(), shape(field)) {
        (Kind::Enum(_), Shape::Plain) => format!("{expression} != 0"),
        (_, Shape::Optional) => format!("{expression}.is_some()"),
        _ => format!("!{expression}.is_empty()"),
    }
}

/// The expression that reads a JSON value into a field.
fn reader(field: &FieldDescriptor) -> Result<String, Box<dyn Error>> {
    let expression = format!("&mut self.{}", rust_name(field));
    let rule = match (field.kind(), shape(field)) {
        _ if field.is_map() => "map",
        (Kind::String, Shape::Plain) if field.name().ends_with("_json") => "json",
        (Kind::String, Shape::Plain) => "text",
        (Kind::String, Shape::Optional) => "optional_text",
        (Kind::String, Shape::List) => "texts",
        (Kind::Bool, Shape::Optional) => "flag",
        (Kind::Int32, Shape::Optional) => "integer::<i32>",
        (Kind::Int64, Shape::Optional) => "integer::<i64>",
        (Kind::Double, Shape::Optional) => "number",
        (Kind::Message(it), Shape::Optional) if it.full_name() == "google.protobuf.Timestamp" => {
            "time"
        }
        (Kind::Message(_), Shape::Optional) => "object",
        (Kind::Message(_), Shape::List) => "objects",
        (Kind::Enum(names), Shape::Plain) => {
            return Ok(format!(
                "read::name::<{}>({expression}, value)",
                names.name()
            ));
        }
        _ => return Err(format!("no rule for {}", field.full_name()).into()),
    };
    Ok(format!("read::{rule}({expression}, value)"))
}

/// The expression that writes a field of `self` as a member.
fn writer(
    message: &MessageDescriptor,
    field: &FieldDescriptor,
    empty: &str,
) -> Result<String, Box<dyn Error>> {
    let name = member(field);
    let expression = format!("self.{}", rust_name(field));
    let rule = match (field.kind(), shape(field)) {
        (Kind::Enum(tags), Shape::Plain) if name == "type" => {
            return Ok(format!(
                "out.tag::<{}>({expression}, &[{}])",
                tags.name(),
                payloads(message, &tags)?
            ));
        }
        (Kind::Enum(names), Shape::Plain) => {
            return Ok(format!(
                "out.name::<{}>(\"{name}\", {expression}, {empty})",
                names.name()
            ));
        }
        (Kind::Int32 | Kind::Int64, Shape::Optional) => {
            return Ok(format!(
                "out.integer(\"{name}\", {expression}.map(i64::from), {empty})"
            ));
        }
        (Kind::Bool | Kind::Double, Shape::Optional) => {
            let rule = if field.kind() == Kind::Bool {
                "flag"
            } else {
                "number"
            };
            return Ok(format!("out.{rule}(\"{name}\", {expression}, {empty})"));
        }
        _ if field.is_map() => "map",
        (Kind::String, Shape::Plain) if field.name().ends_with("_json") => "json",
        (Kind::String, Shape::Plain) => "text",
        (Kind::String, Shape::Optional) => {
            return Ok(format!(
                "out.optional_text(\"{name}\", {expression}.as_deref(), {empty})"
            ));
        }
        (Kind::String, Shape::List) => "texts",
        (Kind::Message(it), Shape::Optional) if it.full_name() == "google.protobuf.Timestamp" => {
            return Ok(format!(
                "out.time(\"{name}\", {expression}.as_ref(), {empty})"
            ));
        }
        (Kind::Message(_), Shape::Optional) => {
            return Ok(format!(
                "out.object(\"{name}\", {expression}.as_ref(), {empty})"
            ));
        }
        (Kind::Message(_), Shape::List) => "objects",
        _ => return Err(format!("no rule for {}", field.full_name()).into()),
    };
    Ok(format!("out.{rule}(\"{name}\", &{expression}, {empty})"))
}

/// The fields that a `type` may name, each with whether it is set: a missing type is inferred when
/// exactly one is.
fn payloads(message: &MessageDescriptor, tags: &EnumDescriptor) -> Result<String, Box<dyn Error>> {
    let payload = |(name, number): (String, i32)| {
        let field = message.get_field_by_name(&name)?;
        Some(format!("({number}, {})", is_set(&field)))
    };
    Ok(names(tags)?
        .into_iter()
        .filter_map(payload)
        .collect::<Vec<_>>()
        .join(", "))
}

/// The JSON strings of an enum, and their numbers. The zero value has none.
fn names(of: &EnumDescriptor) -> Result<Vec<(String, i32)>, String> {
    let prefix = format!("{}_", shouting(of.name()));
    let values = of
        .values()
        .filter(|value| value.number() != 0)
        .map(|value| {
            let name = value
                .name()
                .strip_prefix(&prefix)
                .ok_or(format!("{} lacks the prefix {prefix}", value.name()))?;
            Ok((name.to_ascii_lowercase(), value.number()))
        });
    values.collect()
}

#[derive(PartialEq)]
enum Shape {
    Plain,
    Optional,
    List,
}

fn shape(field: &FieldDescriptor) -> Shape {
    match field.cardinality() {
        Cardinality::Repeated => Shape::List,
        _ if field.supports_presence() => Shape::Optional,
        _ => Shape::Plain,
    }
}

/// The JSON member: the field's own name, or an explicit `json_name`.
fn member(field: &FieldDescriptor) -> &str {
    if field.name().ends_with("_json") {
        field.json_name()
    } else {
        field.name()
    }
}

pub(crate) fn rust_name(field: &FieldDescriptor) -> String {
    match field.name() {
        keyword @ ("type" | "static") => format!("r#{keyword}"),
        name => name.to_owned(),
    }
}

fn row<'a>(table: &'a [(&str, &'a [&'a str])], message: &str) -> &'a [&'a str] {
    table
        .iter()
        .find(|(name, _)| *name == message)
        .map_or(&[], |(_, fields)| fields)
}

/// `RunStatus` as `RUN_STATUS`.
pub(crate) fn shouting(name: &str) -> String {
    let mut out = String::new();
    for (at, letter) in name.char_indices() {
        if letter.is_ascii_uppercase() && at > 0 {
            out.push('_');
        }
        out.push(letter.to_ascii_uppercase());
    }
    out
}
