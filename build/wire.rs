//! Writes which fields each message of the contract has, in the order of their numbers, for
//! `src/wire.rs`.
//!
//! Must hold: all of it is derived from the descriptor. A field whose Rust type has no rule there
//! fails the build.

use std::{error::Error, fmt::Write as _};

use prost_reflect::{DescriptorPool, MessageDescriptor, OneofDescriptor};

use crate::codec::rust_name;

/// The protobuf encoder of all messages in the contract's package, as Rust text to be included in
/// `src/wire.rs`.
pub(crate) fn generate(pool: &DescriptorPool) -> Result<String, Box<dyn Error>> {
    let mut out = String::new();
    for message in pool
        .all_messages()
        .filter(|it| it.package_name() == "runsgateway.v1" && !it.is_map_entry())
    {
        writeln!(
            out,
            "impl Wire for {} {{\n    fn write(&self, out: &mut Out) {{",
            message.name()
        )?;
        fields(&mut out, &message)?;
        writeln!(out, "    }}\n}}\n")?;
    }
    Ok(out)
}

fn fields(out: &mut String, message: &MessageDescriptor) -> Result<(), Box<dyn Error>> {
    let mut fields: Vec<_> = message.fields().collect();
    fields.sort_by_key(prost_reflect::FieldDescriptor::number);
    let mut written: Vec<OneofDescriptor> = Vec::new();
    for field in fields {
        match field
            .containing_oneof()
            .filter(|oneof| !oneof.is_synthetic())
        {
            None => writeln!(
                out,
                "        self.{}.put({}, out);",
                rust_name(&field),
                field.number()
            )?,
            Some(oneof) if written.contains(&oneof) => {}
            Some(oneof) => {
                one_of(out, message, &oneof)?;
                written.push(oneof);
            }
        }
    }
    Ok(())
}

/// The one member that is set, where the first of them would stand. prost does the same, and a
/// message's members follow one another here.
fn one_of(
    out: &mut String,
    message: &MessageDescriptor,
    oneof: &OneofDescriptor,
) -> Result<(), Box<dyn Error>> {
    writeln!(
        out,
        "        match &self.{} {{\n            None => {{}}",
        oneof.name()
    )?;
    let path = format!("{}::{}", snake(message.name()), camel(oneof.name()));
    for field in oneof.fields() {
        writeln!(
            out,
            "            Some({path}::{}(it)) => out.message({}, it),",
            camel(field.name()),
            field.number()
        )?;
    }
    writeln!(out, "        }}")?;
    Ok(())
}

/// `RunEvent` as `run_event`.
pub(crate) fn snake(name: &str) -> String {
    crate::codec::shouting(name).to_ascii_lowercase()
}

/// `run_step` as `RunStep`.
fn camel(name: &str) -> String {
    let word = |word: &str| {
        let (first, rest) = word.split_at(1);
        format!("{}{rest}", first.to_ascii_uppercase())
    };
    name.split('_').map(word).collect()
}
