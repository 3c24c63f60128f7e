//! Every answer of every test, held against the OpenAPI document: its status, its problem, its headers and the
//! members of its body are those that the document says.

use dpp::api::openapi::document;
use serde_json::{Value, json};

use super::Answer;

/// An operation of the document.
#[derive(Clone, Debug)]
pub struct Operation {
    pub method: String,
    /// With its parameters' names in braces.
    pub path: String,
    pub object: &'static Value,
}

impl Operation {
    /// Every operation.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for (path, methods) in document()["paths"].as_object().unwrap() {
            for (method, object) in methods.as_object().unwrap() {
                all.push(Self { method: method.to_uppercase(), path: path.clone(), object });
            }
        }
        all
    }

    /// Whether it needs a key, and with which scope.
    pub fn scope(&self) -> Option<Option<&str>> {
        let needs = self.object["security"][0].get("api_key")?;
        Some(needs[0].as_str())
    }

    /// The slugs of all its problems.
    pub fn problems(&self) -> Vec<String> {
        let responses = self.object["responses"].as_object().unwrap().values().map(resolved);
        responses.flat_map(slugs).collect()
    }
}

/// Panics where an answer is not what the document says.
pub fn check(method: &str, path: &str, answer: &Answer) {
    let said = format!("{method} {path}: {answer:?}");
    let template = document()["paths"].as_object().unwrap().iter().find(|(template, _)| fits(template, path));
    let Some((_, operations)) = template else {
        assert_eq!(answer.status, 404, "not in the document, and yet there: {said}");
        return;
    };
    // Without the operator's token there is nothing below this.
    if path.starts_with("/v1/admin/") && answer.status == 404 {
        assert_eq!(answer.slug(), if method == "HEAD" { "" } else { "not-found" }, "{said}");
        return;
    }
    let method = if method == "HEAD" { "get".to_owned() } else { method.to_lowercase() };
    let Some(operation) = operations.get(&method) else {
        let expected = if method == "options" { 204 } else { 405 };
        assert_eq!(answer.status, expected, "not in the document, and yet there: {said}");
        return;
    };
    let response = operation["responses"].get(answer.status.to_string());
    let response = resolved(response.unwrap_or_else(|| panic!("this status is not in the document: {said}")));
    for (name, header) in document()["components"]["headers"].as_object().unwrap() {
        let documented = response["headers"].get(name).is_some();
        let given = answer.headers.contains_key(name);
        // What is not a tenant's may say how long it is kept, or not.
        assert!(documented || !given || name == "Cache-Control", "{name} is not in the document: {said}");
        assert!(given || !documented || header["required"] != json!(true), "{name} is missing: {said}");
    }
    let Some(content) = response.get("content") else {
        assert_eq!(answer.body, json!(""), "no body is in the document: {said}");
        return;
    };
    let form = answer.header("content-type").unwrap().split(';').next().unwrap();
    let media = content.get(form).unwrap_or_else(|| panic!("{form} is not in the document: {said}"));
    if answer.body == json!("") {
        return;
    }
    if form == "application/problem+json" {
        assert!(slugs(response).contains(&answer.slug().to_owned()), "not in the document: {said}");
    }
    if form.ends_with("json") {
        judge(&media["schema"], &answer.body).unwrap_or_else(|wrong| panic!("{wrong}: {said}"));
    }
}

fn fits(template: &str, path: &str) -> bool {
    let (template, path) = (template.split('/'), path.split('/'));
    template.clone().count() == path.clone().count()
        && template.zip(path).all(|(name, part)| name == part || name.starts_with('{') && !part.is_empty())
}

fn resolved(value: &'static Value) -> &'static Value {
    match value["$ref"].as_str() {
        Some(place) => {
            document().pointer(place.strip_prefix('#').unwrap()).expect("a reference leads somewhere")
        }
        None => value,
    }
}

fn slugs(response: &Value) -> Vec<String> {
    let examples = response["content"]["application/problem+json"]["examples"].as_object();
    examples.into_iter().flat_map(|examples| examples.keys().cloned()).collect()
}

/// Whether a value has the members, types and words of a schema. Formats and bounds are left to the tools that
/// know all of JSON Schema.
pub fn judge(schema: &'static Value, value: &Value) -> Result<(), String> {
    let schema = resolved(schema);
    if let Some(either) = schema["oneOf"].as_array() {
        let fits = either.iter().any(|schema| judge(schema, value).is_ok());
        return fits.then_some(()).ok_or_else(|| format!("{value} is none of {either:?}"));
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let types = &schema["type"];
    let typed = types.is_null()
        || types == kind
        || types.as_array().is_some_and(|types| types.contains(&json!(kind)));
    if !typed {
        return Err(format!("{value} is no {types}"));
    }
    if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
        return Err(format!("{value} is none of {}", schema["enum"]));
    }
    for item in value.as_array().into_iter().flatten() {
        judge(&schema["items"], item)?;
    }
    let Some(members) = value.as_object() else { return Ok(()) };
    let mut parts = vec![schema];
    while let Some(at) = parts.iter().position(|part| part.get("allOf").is_some()) {
        parts.extend(parts[at]["allOf"].as_array().unwrap().iter().map(resolved).collect::<Vec<_>>());
        parts.swap_remove(at);
    }
    let properties = || parts.iter().filter_map(|part| part["properties"].as_object());
    if properties().next().is_none() {
        return Ok(());
    }
    for (name, member) in members {
        let known = properties().find_map(|properties| properties.get(name));
        judge(known.ok_or_else(|| format!("{name} is not in the document"))?, member)?;
    }
    let mut required = parts.iter().filter_map(|part| part["required"].as_array()).flatten();
    match required.find(|name| !members.contains_key(name.as_str().unwrap())) {
        None => Ok(()),
        Some(name) => Err(format!("{name} is missing")),
    }
}
