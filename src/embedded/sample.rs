//! Values that fit a JSON Schema: the arguments of tool calls, and answers in a format that has a
//! schema.
//!
//! Must hold: for the schemas that tools really have (types, `enum`, `const`, `required`, nested
//! objects and arrays, bounds, lengths, the first branch of `anyOf` and `oneOf`, `allOf`, `$ref`
//! into the same document) the value validates; the same schema and topic give the same value; a
//! schema that refers to itself ends, and no schema, however it multiplies, makes a value much
//! larger than [`BYTES`].

use std::cell::Cell;

use serde_json::{Map, Number, Value, json};

/// Below this depth only what is required is filled in; twice as deep nothing is.
const DEPTH: usize = 6;

/// About how many bytes a value may have. What is beyond is `null`.
const BYTES: usize = 64 << 10;

/// A value that fits `schema`. Free texts are `topic` where it fits, else the name of the property.
pub(super) fn value(schema: &Value, topic: Option<&str>) -> Value {
    Sampler {
        root: schema,
        topic,
        remaining: Cell::new(BYTES),
    }
    .value(schema, "value", 0)
}

struct Sampler<'a> {
    root: &'a Value,
    topic: Option<&'a str>,
    /// How many bytes are left.
    remaining: Cell<usize>,
}

impl<'a> Sampler<'a> {
    fn value(&self, schema: &'a Value, name: &str, depth: usize) -> Value {
        if depth > 2 * DEPTH || !self.spend(name.len() + 8) {
            return Value::Null;
        }
        if let Some(value) = schema.get("const").or_else(|| schema.get("enum")?.get(0)) {
            return if self.spend(value.to_string().len()) {
                value.clone()
            } else {
                Value::Null
            };
        }
        if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
            let target = self
                .root
                .pointer(target.trim_start_matches('#'))
                .unwrap_or(&Value::Null);
            return self.value(target, name, depth + 1);
        }
        if let Some(branch) = schema
            .get("anyOf")
            .or_else(|| schema.get("oneOf"))
            .and_then(|branches| branches.get(0))
        {
            return self.value(branch, name, depth + 1);
        }
        if let Some(Value::Array(parts)) = schema.get("allOf") {
            return parts
                .iter()
                .map(|part| self.value(part, name, depth + 1))
                .fold(Value::Null, merge);
        }
        match kind(schema) {
            "object" => self.object(schema, depth),
            "array" => self.array(schema, name, depth),
            "integer" => integer(schema),
            "number" => number(schema),
            "boolean" => Value::Bool(true),
            "null" => Value::Null,
            _ => Value::String(self.text(schema, name)),
        }
    }

    /// Accounts for bytes of the value; false if there are not so many left.
    fn spend(&self, bytes: usize) -> bool {
        let remaining = self.remaining.get().checked_sub(bytes);
        self.remaining.set(remaining.unwrap_or(0));
        remaining.is_some()
    }

    fn object(&self, schema: &'a Value, depth: usize) -> Value {
        let required = |name: &str| matches!(schema.get("required"), Some(Value::Array(names)) if names.iter().any(|it| it == name));
        let Some(Value::Object(properties)) = schema.get("properties") else {
            return json!({});
        };
        let wanted = properties
            .iter()
            .filter(|(name, _)| depth < DEPTH || required(name))
            .take_while(|_| self.remaining.get() > 0);
        let members =
            wanted.map(|(name, schema)| (name.clone(), self.value(schema, name, depth + 1)));
        Value::Object(members.collect::<Map<_, _>>())
    }

    fn array(&self, schema: &'a Value, name: &str, depth: usize) -> Value {
        let least = bound(schema, "minItems").unwrap_or(0);
        let most = bound(schema, "maxItems").unwrap_or(usize::MAX);
        let length = least.max(usize::from(depth < DEPTH)).min(most);
        let items = schema.get("items").unwrap_or(&Value::Null);
        let enough = (0..length).take_while(|_| self.remaining.get() > 0);
        Value::Array(enough.map(|_| self.value(items, name, depth + 1)).collect())
    }

    fn text(&self, schema: &Value, name: &str) -> String {
        let known = match schema.get("format").and_then(Value::as_str) {
            Some("date-time") => Some("2026-01-01T12:00:00Z"),
            Some("date") => Some("2026-01-01"),
            Some("time") => Some("12:00:00Z"),
            Some("email") => Some("someone@example.com"),
            Some("uri") => Some("https://example.com/"),
            Some("uuid") => Some("00000000-0000-4000-8000-000000000000"),
            _ => None,
        };
        let text = known.or(self.topic).unwrap_or(name);
        let least = bound(schema, "minLength")
            .unwrap_or(0)
            .min(self.remaining.get());
        let most = bound(schema, "maxLength")
            .unwrap_or(usize::MAX)
            .min(self.remaining.get());
        let missing = least.saturating_sub(text.chars().count());
        let text: String = text
            .chars()
            .chain(std::iter::repeat_n('.', missing))
            .take(most)
            .collect();
        self.spend(text.len());
        text
    }
}

/// The type of the values, or what the other keywords say of it.
fn kind(schema: &Value) -> &str {
    match schema.get("type") {
        Some(Value::String(kind)) => kind,
        Some(Value::Array(kinds)) => kinds.first().and_then(Value::as_str).unwrap_or("null"),
        _ if schema.get("properties").is_some() => "object",
        _ if schema.get("items").is_some() => "array",
        _ if schema.get("minimum").is_some() => "number",
        _ => "string",
    }
}

fn bound(schema: &Value, keyword: &str) -> Option<usize> {
    schema
        .get(keyword)?
        .as_u64()
        .and_then(|bound| usize::try_from(bound).ok())
}

fn integer(schema: &Value) -> Value {
    let at = |keyword: &str| schema.get(keyword).and_then(Value::as_f64);
    let step = at("multipleOf").filter(|step| *step >= 1.0).unwrap_or(1.0);
    let least = at("minimum")
        .map(f64::ceil)
        .or(at("exclusiveMinimum").map(|least| least.floor() + 1.0));
    let most = at("maximum")
        .map(f64::floor)
        .or(at("exclusiveMaximum").map(|most| most.ceil() - 1.0));
    let number = match (least, most) {
        (Some(least), _) => (least / step).ceil() * step,
        (None, Some(most)) => ((most / step).floor() * step).min(step),
        (None, None) => step,
    };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a bound beyond an i64 is no bound that a tool has"
    )]
    Value::from(number as i64)
}

fn number(schema: &Value) -> Value {
    let at = |keyword: &str| schema.get(keyword).and_then(Value::as_f64);
    let least = at("minimum").or(at("exclusiveMinimum"));
    let most = at("maximum").or(at("exclusiveMaximum"));
    let number = match (least, most, at("multipleOf")) {
        (_, _, Some(_)) => return integer(schema),
        // Between the two, since either may be excluded.
        (Some(least), Some(most), None) => f64::midpoint(least, most),
        (Some(least), None, None) => least + 1.0,
        (None, Some(most), None) => most.min(2.0) - 1.0,
        (None, None, None) => 1.5,
    };
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}

fn merge(all: Value, part: Value) -> Value {
    match (all, part) {
        (Value::Object(mut all), Value::Object(part)) => {
            all.extend(part);
            Value::Object(all)
        }
        (_, part) => part,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_fits_its_schema_and_the_same_schema_gives_the_same_value() {
        let tree = json!({
            "type": "object",
            "properties": { "left": { "$ref": "#" }, "leaves": { "type": "array", "items": { "$ref": "#/$defs/leaf" } } },
            "$defs": { "leaf": { "type": "object", "properties": { "name": { "type": "string" } }, "required": ["name"] } },
        });
        let schemas = [
            json!({ "type": "object" }),
            json!({ "type": "object", "properties": {}, "additionalProperties": false }),
            json!({ "type": "object", "properties": { "a": { "enum": ["x", 5] }, "b": { "const": null } }, "required": ["a", "b"] }),
            json!({ "properties": { "a": { "type": ["integer", "null"] } }, "required": ["a"] }),
            json!({ "type": "array", "items": { "type": "boolean" }, "minItems": 3 }),
            json!({ "type": "array", "items": { "type": "boolean" }, "maxItems": 0 }),
            json!({ "type": "integer", "minimum": 3, "maximum": 3 }),
            json!({ "type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5 }),
            json!({ "type": "integer", "minimum": 10, "multipleOf": 7 }),
            json!({ "type": "integer", "maximum": -4 }),
            json!({ "type": "number", "minimum": 0, "maximum": 1 }),
            json!({ "type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5 }),
            json!({ "type": "number", "maximum": -2 }),
            json!({ "type": "string", "minLength": 40 }),
            json!({ "type": "string", "maxLength": 2 }),
            json!({ "type": "string", "format": "date" }),
            json!({ "anyOf": [{ "type": "integer" }, { "type": "null" }] }),
            json!({ "oneOf": [{ "type": "boolean" }, { "type": "string" }] }),
            json!({ "allOf": [
                { "type": "object", "properties": { "a": { "type": "integer" } }, "required": ["a"] },
                { "type": "object", "properties": { "b": { "type": "null" } }, "required": ["b"] },
            ] }),
            tree,
        ];
        for schema in schemas {
            for topic in [None, Some("Paris")] {
                let sample = value(&schema, topic);
                assert!(
                    jsonschema::is_valid(&schema, &sample),
                    "{sample} does not fit {schema}"
                );
                assert_eq!(sample, value(&schema, topic));
            }
        }
    }

    #[test]
    fn a_schema_that_needs_itself_ends() {
        let endless = json!({ "type": "object", "properties": { "next": { "$ref": "#" } }, "required": ["next"] });
        assert!(value(&endless, None).is_object());
        assert_eq!(value(&json!({ "$ref": "#" }), None), Value::Null);
    }

    #[test]
    fn a_schema_that_multiplies_is_cut() {
        let branches: Map<String, Value> = (0..100)
            .map(|at| (at.to_string(), json!({ "$ref": "#" })))
            .collect();
        let schemas = [
            json!({ "type": "object", "properties": branches }),
            json!({ "type": "array", "items": { "type": "array", "items": {}, "minItems": 1_000_000_000 }, "minItems": 1_000_000 }),
            json!({ "type": "string", "minLength": 1_000_000_000 }),
            json!({ "type": "array", "items": { "const": "x".repeat(1_000) }, "minItems": 1_000_000 }),
        ];
        for schema in schemas {
            assert!(value(&schema, None).to_string().len() < 2 * BYTES);
        }
    }
}
