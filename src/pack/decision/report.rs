//! From numbers to what the buyer reads: the JSON of the result, its schema, and the rationale in
//! plain sentences. Decides nothing; that is [`super::analysis`].

#![expect(clippy::float_arithmetic, reason = "scores are not money")]

use std::cmp::Ordering;

use serde_json::{Map, Value, json};

use super::{
    analysis::{Analysis, Flip, Ranking},
    inputs::{Mode, Problem},
};
use crate::pack::fields::closed_object;

/// Decimals of every score, weight and distance.
const DECIMALS: i32 = 6;
/// Most criteria that one sentence names.
const NAMED_MAX: usize = 3;

/// The envelope's `data`.
pub(super) fn data(problem: &Problem, analysis: &Analysis) -> Value {
    let winner = analysis.winner();
    let runner_up = analysis.runner_up();
    let tied_with: Vec<_> = analysis.tied_with_winner().map(|option| option_name(problem, option)).collect();
    let criteria: Vec<_> = problem
        .criteria
        .iter()
        .enumerate()
        .map(|(index, criterion)| {
            json!({
                "name": criterion.name,
                "direction": criterion.direction.as_str(),
                "weight": rounded(analysis.weights[index]),
                "all_equal": analysis.constant[index],
            })
        })
        .collect();
    let options: Vec<_> =
        (0..problem.options.len()).map(|option| option_data(problem, analysis, option)).collect();
    let sensitivity: Vec<_> = (0..problem.criteria.len())
        .map(|criterion| {
            json!({
                "criterion": problem.criteria[criterion].name,
                "weight": rounded(analysis.weights[criterion]),
                "flip": analysis.flips[criterion].map(|flip| flip_data(problem, analysis, criterion, flip)),
            })
        })
        .collect();
    json!({
        "question": problem.question,
        "mode": problem.mode.as_str(),
        "winner": {
            "option": option_name(problem, winner),
            "score": rounded(analysis.weighted_sum.values[winner]),
            "tie": !tied_with.is_empty(),
            "tied_with": tied_with,
        },
        "runner_up": {
            "option": option_name(problem, runner_up),
            "score": rounded(analysis.weighted_sum.values[runner_up]),
            "margin": rounded(analysis.margin()),
        },
        "criteria": criteria,
        "options": options,
        "rankings": {
            "weighted_sum": ranking_data(problem, &analysis.weighted_sum),
            "topsis": ranking_data(problem, &analysis.topsis),
        },
        "agreement": {
            "same_winner": analysis.topsis.ranks[winner] == 1,
            "same_order": analysis.topsis.ranks == analysis.weighted_sum.ranks,
            "kendall_tau": analysis.kendall_tau.map(rounded),
        },
        "sensitivity": {
            "criteria": sensitivity,
            "most_critical": analysis.most_critical.map(|criterion| &problem.criteria[criterion].name),
        },
        "rationale": rationale(problem, analysis),
    })
}

fn option_data(problem: &Problem, analysis: &Analysis, option: usize) -> Value {
    let by_criterion = |value: &dyn Fn(usize) -> f64| -> Map<String, Value> {
        let names = problem.criteria.iter().enumerate();
        names.map(|(index, criterion)| (criterion.name.clone(), json!(rounded(value(index))))).collect()
    };
    json!({
        "name": option_name(problem, option),
        "score": rounded(analysis.weighted_sum.values[option]),
        "rank": analysis.weighted_sum.ranks[option],
        "topsis": rounded(analysis.topsis.values[option]),
        "topsis_rank": analysis.topsis.ranks[option],
        "normalized_scores": by_criterion(&|criterion| analysis.benefits[option][criterion]),
        "contributions": by_criterion(&|criterion| analysis.contribution(option, criterion)),
    })
}

fn ranking_data(problem: &Problem, ranking: &Ranking) -> Value {
    let places = ranking.order.iter().map(|option| {
        json!({
            "rank": ranking.ranks[*option],
            "option": option_name(problem, *option),
            "value": rounded(ranking.values[*option]),
        })
    });
    Value::Array(places.collect())
}

fn flip_data(problem: &Problem, analysis: &Analysis, criterion: usize, flip: Flip) -> Value {
    json!({
        "direction": if flip.upwards { "increase" } else { "decrease" },
        "weight": rounded(flip.at),
        "change": rounded(flip.at - analysis.weights[criterion]),
        "input_weight": flip.at_on_input_scale.map(significant),
        "new_winner": option_name(problem, flip.to),
    })
}

/// Why the winner wins: two or three sentences, or the whole story.
fn rationale(problem: &Problem, analysis: &Analysis) -> String {
    let mut sentences = vec![verdict(problem, analysis)];
    match problem.mode {
        Mode::Brief => sentences.extend(strengths(problem, analysis)),
        Mode::Detailed => {
            sentences.extend(
                (0..problem.criteria.len()).map(|criterion| contribution(problem, analysis, criterion)),
            );
            sentences.push(second_opinion(problem, analysis));
        }
    }
    sentences.push(stability(problem, analysis));
    if problem.mode == Mode::Detailed {
        sentences.extend(
            (0..problem.criteria.len())
                .filter(|criterion| Some(*criterion) != analysis.most_critical)
                .filter_map(|criterion| {
                    let flip = analysis.flips[criterion]?;
                    Some(format!("{}.", flip_clause(problem, analysis, criterion, flip)))
                }),
        );
    }
    sentences.join(" ")
}

fn verdict(problem: &Problem, analysis: &Analysis) -> String {
    let winner = option_name(problem, analysis.winner());
    let score = analysis.weighted_sum.values[analysis.winner()];
    let tied: Vec<_> = analysis
        .tied_with_winner()
        .take(NAMED_MAX)
        .map(|option| format!("\"{}\"", option_name(problem, option)))
        .collect();
    if tied.is_empty() {
        let runner_up = analysis.runner_up();
        return format!(
            "\"{winner}\" comes first with a weighted score of {score:.3} out of 1, {:.3} ahead of \"{}\" at {:.3}.",
            analysis.margin(),
            option_name(problem, runner_up),
            analysis.weighted_sum.values[runner_up],
        );
    }
    let more = analysis.tied_with_winner().count().saturating_sub(tied.len());
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!(
        "\"{winner}\" shares first place with {}{more} at a weighted score of {score:.3} out of 1; it is \
         named the winner only because it stands first in the inputs.",
        tied.join(", "),
    )
}

/// Where the winner beats the runner-up, by how much it matters; nothing in a tie.
fn strengths(problem: &Problem, analysis: &Analysis) -> Option<String> {
    let (winner, runner_up) = (analysis.winner(), analysis.runner_up());
    let mut leads: Vec<_> = (0..problem.criteria.len())
        .map(|criterion| {
            let lead = analysis.contribution(winner, criterion) - analysis.contribution(runner_up, criterion);
            (criterion, lead)
        })
        .filter(|(_, lead)| 0.0 < *lead)
        .collect();
    if leads.is_empty() || analysis.tied_with_winner().next().is_some() {
        return None;
    }
    leads.sort_by(|left, right| right.1.total_cmp(&left.1));
    let named: Vec<_> = leads
        .iter()
        .take(NAMED_MAX)
        .map(|(criterion, lead)| {
            let weight = percent(analysis.weights[*criterion]);
            format!("\"{}\" (weight {weight}, +{lead:.3})", problem.criteria[*criterion].name)
        })
        .collect();
    Some(format!("It owes its lead to {}.", named.join(", ")))
}

fn contribution(problem: &Problem, analysis: &Analysis, criterion: usize) -> String {
    let name = &problem.criteria[criterion].name;
    let weight = percent(analysis.weights[criterion]);
    if analysis.constant[criterion] {
        return format!("\"{name}\" (weight {weight}) sets no option apart: all score the same.");
    }
    let (winner, runner_up) = (analysis.winner(), analysis.runner_up());
    format!(
        "\"{name}\" (weight {weight}) adds {:.3} to \"{}\" and {:.3} to \"{}\".",
        analysis.contribution(winner, criterion),
        option_name(problem, winner),
        analysis.contribution(runner_up, criterion),
        option_name(problem, runner_up),
    )
}

fn second_opinion(problem: &Problem, analysis: &Analysis) -> String {
    let winner = analysis.winner();
    let closeness = analysis.topsis.values[winner];
    if analysis.topsis.ranks[winner] == 1 {
        return format!(
            "TOPSIS, which measures the distance to the best and worst imaginable option, agrees: \"{}\" is \
             closest to the best at {closeness:.3}.",
            option_name(problem, winner),
        );
    }
    let other = analysis.topsis.order[0];
    format!(
        "TOPSIS, which measures the distance to the best and worst imaginable option, prefers \"{}\" at \
         {:.3} to \"{}\" at {closeness:.3}.",
        option_name(problem, other),
        analysis.topsis.values[other],
        option_name(problem, winner),
    )
}

fn stability(problem: &Problem, analysis: &Analysis) -> String {
    let flip =
        analysis.most_critical.and_then(|criterion| analysis.flips[criterion].map(|flip| (criterion, flip)));
    match flip {
        Some((criterion, flip)) => {
            format!(
                "The result hangs most on one weight: {}.",
                flip_clause(problem, analysis, criterion, flip)
            )
        }
        None => "No change of any single weight makes another option win.".to_owned(),
    }
}

fn flip_clause(problem: &Problem, analysis: &Analysis, criterion: usize, flip: Flip) -> String {
    let (to, criterion_name) = (option_name(problem, flip.to), &problem.criteria[criterion].name);
    let (now, at) = (percent(analysis.weights[criterion]), percent(flip.at));
    match (now == at, flip.upwards) {
        (true, true) => {
            format!("\"{to}\" wins if the weight of \"{criterion_name}\", now {now}, grows at all")
        }
        (true, false) => {
            format!("\"{to}\" wins if the weight of \"{criterion_name}\", now {now}, falls at all")
        }
        (false, true) => {
            format!("\"{to}\" wins if the weight of \"{criterion_name}\" grows from {now} to above {at}")
        }
        (false, false) => {
            format!("\"{to}\" wins if the weight of \"{criterion_name}\" falls from {now} to below {at}")
        }
    }
}

fn option_name(problem: &Problem, option: usize) -> &str {
    &problem.options[option].name
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// `value` to [`DECIMALS`] decimals, never `-0`.
fn rounded(value: f64) -> f64 {
    let unit = 10_f64.powi(DECIMALS);
    let rounded = (value * unit).round() / unit;
    match rounded.partial_cmp(&0.0) {
        Some(Ordering::Equal) => 0.0,
        _ => rounded,
    }
}

/// `value` to nine significant digits: for weights on the buyer's own scale, which may be any.
fn significant(value: f64) -> f64 {
    format!("{value:.8e}").parse().unwrap_or(value)
}

/// JSON Schema of [`data`].
pub(super) fn schema() -> Value {
    let share = json!({ "type": "number", "minimum": 0, "maximum": 1 });
    let rank = json!({ "type": "integer", "minimum": 1 });
    let by_criterion = json!({ "type": "object", "additionalProperties": &share });
    let ranking = json!({
        "type": "array",
        "items": closed_object(&json!({ "rank": &rank, "option": { "type": "string" }, "value": &share })),
    });
    let flip = closed_object(&json!({
        "direction": { "type": "string", "enum": ["increase", "decrease"] },
        "weight": &share,
        "change": { "type": "number", "minimum": -1, "maximum": 1 },
        "input_weight": {
            "type": ["number", "null"],
            "description": "The same on the scale of the inputs, the other weights left as they are.",
        },
        "new_winner": { "type": "string" },
    }));
    let mut schema = closed_object(&json!({
        "question": { "type": ["string", "null"] },
        "mode": { "type": "string", "enum": ["brief", "detailed"] },
        "winner": closed_object(&json!({
            "option": { "type": "string" },
            "score": &share,
            "tie": { "type": "boolean" },
            "tied_with": { "type": "array", "items": { "type": "string" } },
        })),
        "runner_up": closed_object(&json!({ "option": { "type": "string" }, "score": &share, "margin": &share })),
        "criteria": {
            "type": "array",
            "items": closed_object(&json!({
                "name": { "type": "string" },
                "direction": { "type": "string", "enum": ["maximize", "minimize"] },
                "weight": &share,
                "all_equal": { "type": "boolean" },
            })),
        },
        "options": {
            "type": "array",
            "items": closed_object(&json!({
                "name": { "type": "string" },
                "score": &share,
                "rank": &rank,
                "topsis": &share,
                "topsis_rank": &rank,
                "normalized_scores": &by_criterion,
                "contributions": &by_criterion,
            })),
        },
        "rankings": closed_object(&json!({ "weighted_sum": &ranking, "topsis": &ranking })),
        "agreement": closed_object(&json!({
            "same_winner": { "type": "boolean" },
            "same_order": { "type": "boolean" },
            "kendall_tau": {
                "type": ["number", "null"], "minimum": -1, "maximum": 1,
                "description": "Rank correlation; null where one method holds all options equal.",
            },
        })),
        "sensitivity": closed_object(&json!({
            "criteria": {
                "type": "array",
                "items": closed_object(&json!({
                    "criterion": { "type": "string" },
                    "weight": &share,
                    "flip": { "anyOf": [flip, { "type": "null" }] },
                })),
            },
            "most_critical": { "type": ["string", "null"] },
        })),
        "rationale": { "type": "string" },
    }));
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema
}
