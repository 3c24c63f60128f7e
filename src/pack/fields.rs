//! Reading JSON inputs so that every wrong field is named, not only the first, and describing JSON
//! outputs. This knows nothing of what any one pack accepts.

use serde_json::{Map, Value, json};

use super::{FieldError, Refusal};

/// No answer lists more wrong fields than this: enough to mend a page of inputs, and a bound on
/// what a hostile one can make us write.
const FINDINGS_MAX: usize = 50;

/// The wrong fields found so far.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<FieldError>);

impl Findings {
    /// Notes that the field at `pointer` is wrong; past the bound, only that there are more.
    pub(super) fn add(&mut self, pointer: impl Into<String>, detail: impl Into<String>) {
        if self.0.len() < FINDINGS_MAX {
            self.0.push(FieldError { pointer: pointer.into(), detail: detail.into() });
        }
    }

    /// Whether nothing is wrong so far.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `value`, unless something was wrong.
    ///
    /// # Errors
    /// [`Refusal::InvalidInputs`] with everything found.
    pub(super) fn or_value<T>(self, value: Option<T>) -> Result<T, Refusal> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(Refusal::InvalidInputs(self.0)),
        }
    }

    /// `value` as an object with none but `known` fields.
    pub(super) fn object<'a>(
        &mut self,
        value: &'a Value,
        pointer: &str,
        known: &[&str],
    ) -> Option<&'a Map<String, Value>> {
        let Value::Object(object) = value else {
            self.add(pointer, format!("is {}; it must be an object", kind(value)));
            return None;
        };
        for name in object.keys().filter(|name| !known.contains(&name.as_str())) {
            self.add(child(pointer, name), format!("is unknown; the fields here are {}", known.join(", ")));
        }
        Some(object)
    }

    /// The array in `field`, with `min` to `max` items.
    pub(super) fn array<'a>(
        &mut self,
        object: &'a Map<String, Value>,
        field: &str,
        (min, max): (usize, usize),
    ) -> Option<&'a [Value]> {
        let pointer = child("", field);
        match object.get(field)? {
            Value::Array(items) if (min..=max).contains(&items.len()) => Some(items),
            Value::Array(items) => {
                self.add(pointer, format!("holds {}; it must hold {min} to {max} items", items.len()));
                None
            }
            other => {
                self.add(pointer, format!("is {}; it must be an array of {min} to {max} items", kind(other)));
                None
            }
        }
    }

    /// The text in `field`, of 1 to `chars_max` characters and not blank; `None` where it is left
    /// out or wrong.
    pub(super) fn text<'a>(
        &mut self,
        object: &'a Map<String, Value>,
        pointer: &str,
        field: &str,
        chars_max: usize,
    ) -> Option<&'a str> {
        let pointer = child(pointer, field);
        match object.get(field)? {
            Value::String(text) if text.trim().is_empty() => {
                self.add(pointer, format!("is blank; it must have 1 to {chars_max} characters"));
                None
            }
            // Bytes are never fewer than characters: short texts need no count.
            Value::String(text) if text.len() <= chars_max || text.chars().count() <= chars_max => Some(text),
            Value::String(_) => {
                self.add(pointer, format!("is too long; it must have 1 to {chars_max} characters"));
                None
            }
            other => {
                self.add(
                    pointer,
                    format!("is {}; it must be a string of 1 to {chars_max} characters", kind(other)),
                );
                None
            }
        }
    }

    /// [`Findings::text`], of a field that may not be left out.
    pub(super) fn required_text<'a>(
        &mut self,
        object: &'a Map<String, Value>,
        pointer: &str,
        field: &str,
        chars_max: usize,
    ) -> Option<&'a str> {
        if !object.contains_key(field) {
            self.add(
                child(pointer, field),
                format!("is missing; it must be a string of 1 to {chars_max} characters"),
            );
        }
        self.text(object, pointer, field, chars_max)
    }
}

/// The JSON Pointer of `name` within what `pointer` points at.
pub(super) fn child(pointer: &str, name: &str) -> String {
    format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"))
}

/// What a value is, for a sentence.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The JSON Schema of an object that has all of `properties` and no others.
pub(super) fn closed_object(properties: &Value) -> Value {
    let required: Vec<_> = properties.as_object().into_iter().flat_map(Map::keys).collect();
    json!({ "type": "object", "additionalProperties": false, "required": required, "properties": properties })
}
