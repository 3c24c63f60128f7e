//! The packs, through the door that the API and the worker use.

mod decision;
mod site;
mod url;

use std::time::Duration;

use dpp::{
    domain::{money::UsdMicros, price::Meter},
    pack::{Failure, FieldError, Job, Pack, Product, Refusal},
};
use serde_json::Value;

/// Far more than any run here costs.
const AMPLE: UsdMicros = UsdMicros::constant(100_000_000);

/// A job with a minute to go, and its meter.
fn job(inputs: &Value, cap: UsdMicros) -> (Job, Meter) {
    let meter = Meter::new(cap);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    (Job { inputs: inputs.clone(), deadline, meter: meter.clone() }, meter)
}

/// Checks and runs `inputs`; what comes out must fit the terms, and cost no less than was quoted.
async fn run(pack: &dyn Pack, inputs: &Value) -> Result<Product, Failure> {
    fits(inputs, &pack.terms().input_schema).unwrap();
    let quote = pack.check(inputs).unwrap();
    let (job, meter) = job(inputs, AMPLE);
    let product = pack.run(job).await?;
    fits(&product.data, &pack.terms().output_schema).unwrap();
    assert!(quote.at_least <= meter.used(), "quoted {}, used {}", quote.at_least, meter.used());
    Ok(product)
}

/// The wrong fields of `inputs`.
fn wrong_fields(pack: &dyn Pack, inputs: &Value) -> Vec<FieldError> {
    match pack.check(inputs) {
        Err(Refusal::InvalidInputs(fields)) => {
            assert!(!fields.is_empty(), "a refusal must name a field: {inputs}");
            fields
        }
        other => panic!("expected InvalidInputs of {inputs}, got {other:?}"),
    }
}

/// Whether `value` fits `schema`: as much of JSON Schema as the packs' terms use. A keyword that it
/// does not know stops the test, lest a bound goes unchecked.
fn fits(value: &Value, schema: &Value) -> Result<(), String> {
    for (keyword, bound) in schema.as_object().unwrap() {
        let number = |holds: fn(f64, f64) -> bool| {
            value.as_f64().is_none_or(|value| holds(value, bound.as_f64().unwrap()))
        };
        let size = value.as_array().map(Vec::len).map(|size| size as u64);
        let chars = value.as_str().map(|text| text.chars().count() as u64);
        let holds = match keyword.as_str() {
            "$schema" | "description" | "default" | "format" => true,
            "type" => match bound {
                Value::Array(types) => types.iter().any(|name| is_of(value, name.as_str().unwrap())),
                name => is_of(value, name.as_str().unwrap()),
            },
            "enum" => bound.as_array().unwrap().contains(value),
            "minimum" => number(|value, bound| bound <= value),
            "maximum" => number(|value, bound| value <= bound),
            "exclusiveMinimum" => number(|value, bound| bound < value),
            "minItems" => size.is_none_or(|size| bound.as_u64().unwrap() <= size),
            "maxItems" => size.is_none_or(|size| size <= bound.as_u64().unwrap()),
            "minLength" => chars.is_none_or(|chars| bound.as_u64().unwrap() <= chars),
            "maxLength" => chars.is_none_or(|chars| chars <= bound.as_u64().unwrap()),
            "required" => has_all(value, bound),
            "dependentRequired" => {
                let mut pairs = bound.as_object().unwrap().iter();
                pairs.all(|(name, needs)| value.get(name).is_none() || has_all(value, needs))
            }
            "anyOf" => bound.as_array().unwrap().iter().any(|schema| fits(value, schema).is_ok()),
            "properties" => {
                for (name, schema) in bound.as_object().unwrap() {
                    value.get(name).map_or(Ok(()), |value| fits(value, schema))?;
                }
                true
            }
            "additionalProperties" => {
                let properties = schema.get("properties");
                let known = |name: &str| properties.is_some_and(|known| known.get(name).is_some());
                for (name, value) in value.as_object().into_iter().flatten().filter(|(name, _)| !known(name))
                {
                    match bound {
                        Value::Bool(allowed) if *allowed => {}
                        Value::Bool(_) => return Err(format!("{name} is no property of {schema}")),
                        schema => fits(value, schema)?,
                    }
                }
                true
            }
            "items" => {
                value.as_array().into_iter().flatten().try_for_each(|item| fits(item, bound))?;
                true
            }
            unknown => panic!("the schema uses {unknown}, which this test does not check"),
        };
        if !holds {
            return Err(format!("{value} breaks {keyword}: {bound}"));
        }
    }
    Ok(())
}

fn is_of(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        unknown => panic!("{unknown} is no type of JSON Schema"),
    }
}

fn has_all(value: &Value, names: &Value) -> bool {
    let mut names = names.as_array().unwrap().iter();
    value.as_object().is_none_or(|object| names.all(|name| object.contains_key(name.as_str().unwrap())))
}
