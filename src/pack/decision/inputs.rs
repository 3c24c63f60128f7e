//! What a buyer hands in, read once into a [`Problem`] in which every option has a finite score for
//! every criterion. Nothing is computed here.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use crate::pack::{
    Refusal,
    fields::{Findings, child, kind},
};

/// At most this many criteria: beyond it, weights say little.
pub(super) const CRITERIA_MAX: usize = 50;
/// At most this many options.
pub(super) const OPTIONS_MAX: usize = 50;
/// Longest name of a criterion or option.
pub(super) const NAME_CHARS_MAX: usize = 200;
/// Longest `question`.
pub(super) const QUESTION_CHARS_MAX: usize = 2_000;
/// Longest `context`.
pub(super) const CONTEXT_CHARS_MAX: usize = 20_000;

/// A decision to make: a full table of finite scores, and what each column is worth.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub(super) question: Option<String>,
    pub(super) mode: Mode,
    /// At least one.
    pub(super) criteria: Vec<Criterion>,
    /// At least two.
    pub(super) options: Vec<Choice>,
}

/// One thing that matters.
#[derive(Clone, Debug)]
pub(super) struct Criterion {
    pub(super) name: String,
    /// Finite and above zero, on the buyer's own scale.
    pub(super) weight: f64,
    pub(super) direction: Direction,
}

/// Which scores of a criterion are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Maximize,
    Minimize,
}

impl Direction {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Maximize => "maximize",
            Self::Minimize => "minimize",
        }
    }
}

/// One option.
#[derive(Clone, Debug)]
pub(super) struct Choice {
    pub(super) name: String,
    /// One finite score for each criterion, in their order.
    pub(super) scores: Vec<f64>,
}

/// How much the rationale tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Brief,
    Detailed,
}

impl Mode {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Brief => "brief",
            Self::Detailed => "detailed",
        }
    }
}

impl Problem {
    /// Reads `inputs`.
    ///
    /// # Errors
    /// [`Refusal::InvalidInputs`] with every wrong field; [`Refusal::Unavailable`] for a bare
    /// question, to which options and criteria would have to be invented first.
    pub(super) fn read(inputs: &Value) -> Result<Self, Refusal> {
        let mut findings = Findings::default();
        let Some(object) =
            findings.object(inputs, "", &["question", "context", "mode", "criteria", "options"])
        else {
            return findings.or_value(None);
        };
        let question = findings.text(object, "", "question", QUESTION_CHARS_MAX).map(str::to_owned);
        // Context is for a language model, and for the buyer's own records; the numbers need none.
        findings.text(object, "", "context", CONTEXT_CHARS_MAX);
        let mode = read_mode(object, &mut findings);

        match (object.contains_key("criteria"), object.contains_key("options")) {
            (false, false) if question.is_some() && findings.is_empty() => {
                return Err(Refusal::Unavailable(
                    "a question without criteria and options needs a language model, and none is configured"
                        .to_owned(),
                ));
            }
            (false, false) if object.contains_key("question") => {}
            (has_criteria, has_options) => {
                if !has_criteria {
                    findings.add("/criteria", format!("is missing; give 1 to {CRITERIA_MAX} criteria"));
                }
                if !has_options {
                    findings.add("/options", format!("is missing; give 2 to {OPTIONS_MAX} options"));
                }
            }
        }

        let criteria = read_criteria(object, &mut findings);
        let options = read_options(object, criteria.as_deref(), &mut findings);
        let problem =
            criteria.zip(options).map(|(criteria, options)| Self { question, mode, criteria, options });
        findings.or_value(problem)
    }

    /// How many scores the table holds: what the buyer pays for.
    pub(super) fn score_count(&self) -> u64 {
        // At most 50 × 50.
        u64::try_from(self.criteria.len().saturating_mul(self.options.len())).unwrap_or(u64::MAX)
    }
}

fn read_mode(object: &Map<String, Value>, findings: &mut Findings) -> Mode {
    match object.get("mode") {
        None => Mode::Brief,
        Some(Value::String(mode)) if mode == Mode::Brief.as_str() => Mode::Brief,
        Some(Value::String(mode)) if mode == Mode::Detailed.as_str() => Mode::Detailed,
        Some(_) => {
            findings.add("/mode", "must be \"brief\" (the default) or \"detailed\"");
            Mode::Brief
        }
    }
}

/// All criteria, or `None` when one of them is not fit to be held against scores.
fn read_criteria(object: &Map<String, Value>, findings: &mut Findings) -> Option<Vec<Criterion>> {
    let items = findings.array(object, "criteria", (1, CRITERIA_MAX))?;
    let mut names = HashSet::new();
    let read: Vec<_> = items
        .iter()
        .enumerate()
        .map(|(index, item)| {
            let pointer = format!("/criteria/{index}");
            let fields = findings.object(item, &pointer, &["name", "weight", "direction"])?;
            let name = read_name(fields, &pointer, &mut names, findings);
            let weight = match fields.get("weight").map(|weight| (weight, weight.as_f64())) {
                Some((_, Some(weight))) if weight.is_finite() && 0.0 < weight => Some(weight),
                Some((Value::Number(weight), _)) => {
                    findings.add(child(&pointer, "weight"), format!("is {weight}; it must be above 0"));
                    None
                }
                Some((other, _)) => {
                    findings.add(
                        child(&pointer, "weight"),
                        format!("is {}; it must be a number above 0", kind(other)),
                    );
                    None
                }
                None => {
                    findings.add(child(&pointer, "weight"), "is missing; it must be a number above 0");
                    None
                }
            };
            let direction = match fields.get("direction").map(Value::as_str) {
                None | Some(Some("maximize")) => Direction::Maximize,
                Some(Some("minimize")) => Direction::Minimize,
                Some(_) => {
                    findings.add(
                        child(&pointer, "direction"),
                        "must be \"maximize\" (the default) or \"minimize\"",
                    );
                    Direction::Maximize
                }
            };
            // A wrong weight is reported above; the name is still good to check scores against.
            Some(Criterion { name: name?, weight: weight.unwrap_or(1.0), direction })
        })
        .collect();
    read.into_iter().collect()
}

/// All options, or `None` when one of them is wrong. Without criteria to hold them against, only
/// their shape is judged.
fn read_options(
    object: &Map<String, Value>,
    criteria: Option<&[Criterion]>,
    findings: &mut Findings,
) -> Option<Vec<Choice>> {
    let items = findings.array(object, "options", (2, OPTIONS_MAX))?;
    let mut names = HashSet::new();
    let read: Vec<_> = items
        .iter()
        .enumerate()
        .map(|(index, item)| {
            let pointer = format!("/options/{index}");
            let fields = findings.object(item, &pointer, &["name", "scores"])?;
            let name = read_name(fields, &pointer, &mut names, findings);
            let scores = read_scores(fields, &child(&pointer, "scores"), criteria, findings);
            Some(Choice { name: name?, scores: scores? })
        })
        .collect();
    read.into_iter().collect()
}

/// The scores of one option, in the order of the criteria.
fn read_scores(
    fields: &Map<String, Value>,
    pointer: &str,
    criteria: Option<&[Criterion]>,
    findings: &mut Findings,
) -> Option<Vec<f64>> {
    let scores = match fields.get("scores") {
        Some(Value::Object(scores)) => scores,
        Some(other) => {
            findings.add(
                pointer,
                format!("is {}; it must be an object with a number for each criterion", kind(other)),
            );
            return None;
        }
        None => {
            findings.add(pointer, "is missing; it must be an object with a number for each criterion");
            return None;
        }
    };
    for (name, score) in scores.iter().filter(|(_, score)| !score.is_number()) {
        findings.add(child(pointer, name), format!("is {}; it must be a number", kind(score)));
    }
    let criteria = criteria?;
    let known: HashSet<_> = criteria.iter().map(|criterion| criterion.name.as_str()).collect();
    for name in scores.keys().filter(|name| !known.contains(name.as_str())) {
        findings.add(child(pointer, name), "is no criterion; score the names listed in /criteria alone");
    }
    let row: Vec<_> = criteria
        .iter()
        .map(|criterion| {
            let score = scores.get(&criterion.name);
            if score.is_none() {
                findings.add(child(pointer, &criterion.name), "is missing; it must be a number");
            }
            score?.as_f64().filter(|score| score.is_finite())
        })
        .collect();
    row.into_iter().collect()
}

fn read_name<'a>(
    fields: &'a Map<String, Value>,
    pointer: &str,
    taken: &mut HashSet<&'a str>,
    findings: &mut Findings,
) -> Option<String> {
    let name = findings.required_text(fields, pointer, "name", NAME_CHARS_MAX)?;
    if !taken.insert(name) {
        findings.add(child(pointer, "name"), "is taken by an earlier item; names must differ");
        return None;
    }
    Some(name.to_owned())
}

/// JSON Schema of the inputs.
pub(super) fn schema() -> Value {
    let name = json!({ "type": "string", "minLength": 1, "maxLength": NAME_CHARS_MAX });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "additionalProperties": false,
        "anyOf": [{ "required": ["criteria", "options"] }, { "required": ["question"] }],
        "dependentRequired": { "criteria": ["options"], "options": ["criteria"] },
        "properties": {
            "question": {
                "type": "string", "minLength": 1, "maxLength": QUESTION_CHARS_MAX,
                "description": "What is to be decided. Alone, it needs a configured language model.",
            },
            "context": {
                "type": "string", "minLength": 1, "maxLength": CONTEXT_CHARS_MAX,
                "description": "Background to the question. It does not change the numbers.",
            },
            "mode": {
                "type": "string", "enum": ["brief", "detailed"], "default": "brief",
                "description": "How much the rationale tells.",
            },
            "criteria": {
                "type": "array", "minItems": 1, "maxItems": CRITERIA_MAX,
                "description": "What matters. Names differ from each other.",
                "items": {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["name", "weight"],
                    "properties": {
                        "name": &name,
                        "weight": {
                            "type": "number", "exclusiveMinimum": 0,
                            "description": "How much it matters against the others, on any scale.",
                        },
                        "direction": {
                            "type": "string", "enum": ["maximize", "minimize"], "default": "maximize",
                            "description": "Whether high or low scores are good.",
                        },
                    },
                },
            },
            "options": {
                "type": "array", "minItems": 2, "maxItems": OPTIONS_MAX,
                "description": "What there is to choose from. Names differ from each other.",
                "items": {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["name", "scores"],
                    "properties": {
                        "name": &name,
                        "scores": {
                            "type": "object",
                            "additionalProperties": { "type": "number" },
                            "description": "A score for every criterion, by its name, on any scale.",
                        },
                    },
                },
            },
        },
    })
}
