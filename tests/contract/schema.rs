//! Walks the schemas of an `OpenAPI` document beside the contract's descriptors, and names what the
//! contract lacks.
//!
//! Must hold: every property that a schema reaches is looked at, through `$ref`, `anyOf`, `oneOf`,
//! `allOf` and lists; what the walk does not understand is reported, never passed over.

use std::{cell::RefCell, collections::BTreeSet};

use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::Value;

/// Sets of strings that the upstream owns, by member: strings in the contract, so that a new one
/// needs no new contract. `object` is here since it has one value per resource.
const OPEN_SETS: [&str; 7] = [
    "code",
    "include",
    "model",
    "object",
    "ranker",
    "reason",
    "reasoning_effort",
];

/// Fields that stand for a bare value instead of a member.
const BARE: [(&str, &str); 4] = [
    ("ToolChoice", "mode"),
    ("ResponseFormat", "mode"),
    ("MessageContent", "text"),
    ("MessageContent", "parts"),
];

pub(crate) struct Comparison<'a> {
    document: &'a Value,
    /// Places of the REST API that the contract lacks, such as `RunObject.usage.foo`.
    pub(crate) lacks: BTreeSet<String>,
    /// How many properties were looked at.
    pub(crate) compared: usize,
    /// The named schemas that were looked at.
    pub(crate) seen: RefCell<BTreeSet<String>>,
}

impl<'a> Comparison<'a> {
    pub(crate) fn new(document: &'a Value) -> Self {
        Self {
            document,
            lacks: BTreeSet::new(),
            compared: 0,
            seen: RefCell::default(),
        }
    }

    fn lack(&mut self, place: String) {
        self.lacks.insert(place);
    }

    /// The schemas that `schema` allows, one by one, with no reference or choice left. `null` is
    /// none of them: it is "unset" everywhere.
    pub(crate) fn alternatives<'s>(&self, schema: &'s Value) -> Vec<&'s Value>
    where
        'a: 's,
    {
        if let Some(target) = schema["$ref"].as_str() {
            let name = target.rsplit('/').next().unwrap_or_default();
            self.seen.borrow_mut().insert(name.to_owned());
            let target = target
                .strip_prefix('#')
                .and_then(|pointer| self.document.pointer(pointer));
            return self.alternatives(
                target.unwrap_or_else(|| panic!("{} leads nowhere", schema["$ref"])),
            );
        }
        let mut found = Vec::new();
        for choice in ["anyOf", "oneOf", "allOf"] {
            // Some choices only say which properties go together.
            let named = |one: &&Value| {
                one.get("required").is_none() || one.as_object().is_none_or(|one| one.len() > 1)
            };
            for one in schema[choice]
                .as_array()
                .into_iter()
                .flatten()
                .filter(named)
            {
                found.extend(self.alternatives(one));
            }
        }
        let more = schema.get("properties").is_some() || found.is_empty();
        let null = schema["type"] == "null"
            || (schema.get("nullable").is_some() && schema.get("type").is_none());
        if more && !null {
            found.push(schema);
        }
        found
    }

    /// Compares an object with the message that mirrors it.
    pub(crate) fn object(&mut self, place: &str, schema: &Value, message: &MessageDescriptor) {
        let place = match schema["$ref"]
            .as_str()
            .and_then(|target| target.rsplit('/').next())
        {
            Some(name) if place.is_empty() => name,
            _ => place,
        };
        for schema in self.alternatives(schema) {
            let Some(properties) = schema["properties"].as_object() else {
                continue;
            };
            for (name, property) in properties {
                self.compared += 1;
                let place = format!("{place}.{name}");
                match message.fields().find(|field| member(field) == Some(name)) {
                    Some(field) => self.value(&place, name, property, &field),
                    None => self.lack(place),
                }
            }
        }
    }

    /// Compares a parameter of the path or the query with the field of the request.
    pub(crate) fn parameter(&mut self, rpc: &str, parameter: &Value, request: &MessageDescriptor) {
        self.compared += 1;
        let name = parameter["name"]
            .as_str()
            .expect("a parameter has a name")
            .trim_end_matches("[]");
        let place = format!("{rpc}.{name}");
        match request.get_field_by_name(name) {
            Some(field) => self.value(&place, name, &parameter["schema"], &field),
            None => self.lack(place),
        }
    }

    fn value(&mut self, place: &str, name: &str, schema: &Value, field: &FieldDescriptor) {
        if field.name().ends_with("_json") {
            // Any JSON.
            return;
        }
        for schema in self.alternatives(schema) {
            if schema["type"] == "array" {
                if field.is_list() {
                    self.one(&format!("{place}[]"), name, &schema["items"], field);
                } else if let Some(bare) = bare(field, FieldDescriptor::is_list) {
                    self.one(&format!("{place}[]"), name, &schema["items"], &bare);
                } else {
                    self.lack(format!("{place} as array"));
                }
            } else if field.is_list() {
                self.lack(format!("{place} as something other than an array"));
            } else {
                self.one(place, name, schema, field);
            }
        }
    }

    /// Compares a value that is no list with a field, or with an element of a list.
    fn one(&mut self, place: &str, name: &str, schema: &Value, field: &FieldDescriptor) {
        for schema in self.alternatives(schema) {
            let kind = if schema.get("properties").is_some() {
                "object"
            } else {
                schema["type"].as_str().unwrap_or_default()
            };
            let time = schema["format"] == "unixtime";
            match (kind, field.kind()) {
                ("object", Kind::Message(_)) if field.is_map() => {
                    if schema["additionalProperties"]["type"] != "string" {
                        self.lack(format!("{place} as additionalProperties"));
                    }
                }
                ("object", Kind::Message(message)) => self.object(place, schema, &message),
                ("string", Kind::Enum(set)) => self.set(place, schema, &set),
                ("string", Kind::String)
                    if schema["enum"].is_array() && !OPEN_SETS.contains(&name) =>
                {
                    self.lack(format!("{place} = {}", schema["enum"][0]));
                }
                ("string", Kind::Message(_)) => {
                    match bare(field, |bare| !bare.is_list()).map(|bare| bare.kind()) {
                        Some(Kind::Enum(set)) => self.set(place, schema, &set),
                        Some(Kind::String) => {}
                        _ => self.lack(format!("{place} as string")),
                    }
                }
                ("integer", Kind::Message(message))
                    if time && message.full_name() == "google.protobuf.Timestamp" => {}
                ("integer", Kind::Int32 | Kind::Int64) if !time => {}
                ("number", Kind::Double) | ("boolean", Kind::Bool) | ("string", Kind::String) => {}
                _ => self.lack(format!("{place} as {kind}")),
            }
        }
    }

    fn set(&mut self, place: &str, schema: &Value, set: &EnumDescriptor) {
        let Some(values) = schema["enum"].as_array() else {
            return self.lack(format!("{place} as any string"));
        };
        let prefix = shouting(set.name());
        for value in values {
            let name = format!(
                "{prefix}_{}",
                value.as_str().unwrap_or_default().to_uppercase()
            );
            if set.get_value_by_name(&name).is_none() {
                self.lack(format!("{place} = {value}"));
            }
        }
    }
}

/// The member that a field mirrors; none for `extra_json` and for bare forms.
fn member(field: &FieldDescriptor) -> Option<&str> {
    let bare = BARE.contains(&(field.parent_message().name(), field.name()));
    match field.name() {
        "extra_json" => None,
        _ if bare => None,
        name if name.ends_with("_json") => Some(field.json_name()),
        name => Some(name),
    }
}

fn bare(
    field: &FieldDescriptor,
    fits: impl Fn(&FieldDescriptor) -> bool,
) -> Option<FieldDescriptor> {
    let message = field.kind().as_message()?.clone();
    message
        .fields()
        .find(|bare| BARE.contains(&(message.name(), bare.name())) && fits(bare))
}

/// `RunStatus` as `RUN_STATUS`.
pub(crate) fn shouting(name: &str) -> String {
    let mut out = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(letter.to_ascii_uppercase());
    }
    out
}
