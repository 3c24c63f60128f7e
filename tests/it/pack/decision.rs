//! The pack `decision`.

#![expect(clippy::float_arithmetic, reason = "scores are not money")]

use dpp::{
    domain::money::UsdMicros,
    pack::{Pack, Refusal, decision::DecisionPack},
};
use futures::FutureExt;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{AMPLE, job, run, wrong_fields};

/// What the pack makes of `inputs`; it never waits for anything.
fn decide(inputs: &Value) -> Value {
    run(&DecisionPack::new(), inputs).now_or_never().unwrap().unwrap().data
}

/// Inputs with criteria `c0`, `c1` … and options `o0`, `o1` ….
fn table(weights: &[f64], minimized: &[bool], scores: &[Vec<f64>]) -> Value {
    let criteria: Vec<_> = weights
        .iter()
        .zip(minimized)
        .enumerate()
        .map(|(index, (weight, minimized))| {
            let direction = if *minimized { "minimize" } else { "maximize" };
            json!({ "name": format!("c{index}"), "weight": weight, "direction": direction })
        })
        .collect();
    let options: Vec<_> = scores
        .iter()
        .enumerate()
        .map(|(index, row)| {
            let scores: serde_json::Map<_, _> =
                row.iter().enumerate().map(|(index, score)| (format!("c{index}"), json!(score))).collect();
            json!({ "name": format!("o{index}"), "scores": scores })
        })
        .collect();
    json!({ "criteria": criteria, "options": options })
}

fn maximize(weights: &[f64], scores: &[Vec<f64>]) -> Value {
    table(weights, &vec![false; weights.len()], scores)
}

fn laptops(mode: &str) -> Value {
    json!({
        "question": "Which laptop?",
        "mode": mode,
        "criteria": [
            { "name": "cost", "weight": 2, "direction": "minimize" },
            { "name": "quality", "weight": 3 },
        ],
        "options": [
            { "name": "Alpha", "scores": { "cost": 100, "quality": 8 } },
            { "name": "Beta", "scores": { "cost": 200, "quality": 10 } },
            { "name": "Gamma", "scores": { "cost": 150, "quality": 5 } },
        ],
    })
}

/// Alpha: 0.4 × 1 + 0.6 × 3/5 = 0.76. Beta: 0.6. Gamma: 0.4 × 1/2 = 0.2. Beta draws level where
/// `(1 - q) + 0.6 q = q`, so at q = 5/7; on the scale of the inputs, cost staying 2, that is 5.
#[test]
fn follows_a_calculation_by_hand() {
    let data = decide(&laptops("brief"));
    assert_eq!(data["winner"], json!({ "option": "Alpha", "score": 0.76, "tie": false, "tied_with": [] }));
    assert_eq!(data["runner_up"], json!({ "option": "Beta", "score": 0.6, "margin": 0.16 }));
    assert_eq!(data["criteria"][0]["weight"], 0.4);
    assert_eq!(data["options"][2]["normalized_scores"], json!({ "cost": 0.5, "quality": 0.0 }));
    assert_eq!(data["options"][0]["contributions"], json!({ "cost": 0.4, "quality": 0.36 }));
    // By an independent implementation of TOPSIS.
    let closeness = |option: usize| data["options"][option]["topsis"].as_f64().unwrap();
    for (option, expected) in [(0, 0.694_059), (1, 0.594_965), (2, 0.243_702)] {
        assert!((closeness(option) - expected).abs() < 1e-9, "{option}: {}", closeness(option));
    }
    assert_eq!(data["agreement"], json!({ "same_winner": true, "same_order": true, "kendall_tau": 1.0 }));
    assert_eq!(
        data["sensitivity"],
        json!({
            "most_critical": "cost",
            "criteria": [
                { "criterion": "cost", "weight": 0.4, "flip": {
                    "direction": "decrease", "weight": 0.285_714, "change": -0.114_286, "input_weight": 1.2,
                    "new_winner": "Beta",
                } },
                { "criterion": "quality", "weight": 0.6, "flip": {
                    "direction": "increase", "weight": 0.714_286, "change": 0.114_286, "input_weight": 5.0,
                    "new_winner": "Beta",
                } },
            ],
        })
    );
}

#[test]
fn tells_why_in_sentences() {
    insta::assert_snapshot!("brief", decide(&laptops("brief"))["rationale"].as_str().unwrap());
    insta::assert_snapshot!("detailed", decide(&laptops("detailed"))["rationale"].as_str().unwrap());
    let tie = maximize(&[1.0, 1.0], &[vec![1.0, 0.0], vec![0.0, 1.0], vec![0.0, 0.0]]);
    insta::assert_snapshot!("tie", decide(&tie)["rationale"].as_str().unwrap());
    // By min-max, the one step from 62 to 63 is all there is to the first criterion; by distance, it
    // is next to nothing.
    let mut disputed = maximize(&[5.0, 4.0], &[vec![62.0, 73.0], vec![62.0, 51.0], vec![63.0, 10.0]]);
    disputed["mode"] = json!("detailed");
    insta::assert_snapshot!("disputed", decide(&disputed)["rationale"].as_str().unwrap());
}

#[test]
fn reports_ties_and_breaks_them_by_the_order_of_the_inputs() {
    let data =
        decide(&maximize(&[0.1, 0.2], &[vec![0.0, 1.0], vec![3.0, 3.0], vec![3.0, 3.0], vec![1.0, 0.0]]));
    assert_eq!(data["winner"], json!({ "option": "o1", "score": 1.0, "tie": true, "tied_with": ["o2"] }));
    assert_eq!(data["runner_up"]["margin"], 0.0);
    let ranks: Vec<_> = (0..4).map(|option| data["options"][option]["rank"].as_u64().unwrap()).collect();
    assert_eq!(ranks, [3, 1, 1, 4]);
    // Twins stay level at any weight.
    assert_eq!(data["sensitivity"]["most_critical"], Value::Null);

    // Level by chance, the tie is broken by the least change.
    let data = decide(&maximize(&[1.0, 1.0], &[vec![1.0, 0.0], vec![0.0, 1.0]]));
    assert_eq!(data["winner"]["tied_with"], json!(["o1"]));
    assert_eq!(data["sensitivity"]["criteria"][0]["flip"]["change"], 0.0);
    assert_eq!(data["sensitivity"]["criteria"][0]["flip"]["direction"], "decrease");
}

#[test]
fn holds_columns_of_equal_scores_for_no_difference() {
    let data = decide(&maximize(&[1.0, 9.0], &[vec![1.0, 0.0], vec![2.0, 0.0]]));
    assert_eq!(data["criteria"][1]["all_equal"], true);
    assert_eq!(data["winner"]["option"], "o1");
    assert_eq!(data["rankings"]["topsis"][0]["option"], "o1");

    let data = decide(&maximize(&[1.0], &[vec![0.0], vec![0.0]]));
    assert_eq!(data["winner"]["tie"], true);
    assert_eq!(data["options"][0]["topsis"], 0.5);
    assert_eq!(data["agreement"]["kendall_tau"], Value::Null);
}

#[test]
fn survives_the_largest_and_smallest_numbers() {
    let (huge, tiny) = (f64::MAX, f64::from_bits(1));
    let data = decide(&table(
        &[huge, huge, tiny],
        &[false, true, false],
        &[vec![huge, -huge, tiny], vec![-huge, huge, 0.0], vec![0.0, 1.0, -tiny]],
    ));
    assert_eq!(data["winner"]["option"], "o0");
    assert_eq!(data["winner"]["score"], 1.0);
    assert_eq!(data["options"][2]["score"], 0.5);
    assert_eq!(data["options"][0]["topsis"], 1.0);
    assert_eq!(data["options"][1]["topsis"], 0.0);
}

#[test]
fn quotes_what_it_charges_and_stops_at_the_cap() {
    let pack = DecisionPack::new();
    // 0.0100 + 6 × 0.0005.
    let cost = UsdMicros::constant(13_000);
    assert_eq!(pack.check(&laptops("brief")).unwrap().at_least, cost);
    let (ample, meter) = job(&laptops("brief"), AMPLE);
    pack.run(ample).now_or_never().unwrap().unwrap();
    assert_eq!(meter.used(), cost);

    let (capped, meter) = job(&laptops("brief"), UsdMicros::constant(12_900));
    let failure = pack.run(capped).now_or_never().unwrap().unwrap_err();
    assert_eq!(failure.reason_code, "max_cost_reached");
    assert_eq!(meter.used(), UsdMicros::constant(10_000));
}

#[test]
fn needs_a_model_for_a_bare_question() {
    let refusal =
        DecisionPack::new().check(&json!({ "question": "Which way?", "context": "Here." })).unwrap_err();
    assert!(matches!(refusal, Refusal::Unavailable(why) if why.contains("language model")));
}

#[test]
fn names_every_wrong_field() {
    let criteria = json!([{ "name": "a", "weight": 1 }, { "name": "b/~", "weight": 1 }]);
    let good = json!({ "name": "x", "scores": { "a": 1, "b/~": 2 } });
    let cases = [
        ("not an object", json!([1])),
        ("nothing", json!({})),
        ("a blank question", json!({ "question": " \n" })),
        ("criteria alone", json!({ "criteria": criteria })),
        ("options alone, with a question", json!({ "question": "q", "options": [good, good] })),
        (
            "wrong types",
            json!({ "question": 1, "context": [], "mode": "long", "criteria": {}, "options": null, "more": 1 }),
        ),
        ("too few", json!({ "criteria": [], "options": [good] })),
        ("too many", json!({ "criteria": vec![&criteria[0]; 51], "options": vec![&good; 51] })),
        (
            "criteria",
            json!({
                "criteria": [
                    { "name": "a", "weight": 0 },
                    { "name": "a", "weight": -1.5 },
                    { "name": "", "weight": "2" },
                    { "weight": 1, "direction": "up" },
                    { "name": "b".repeat(201), "colour": 1 },
                    { "name": 7, "weight": 1, "direction": null },
                    "c",
                ],
                "options": [good, good],
            }),
        ),
        (
            "options",
            json!({
                "criteria": criteria,
                "options": [
                    { "name": "x", "scores": { "a": 1, "b/~": "2" } },
                    { "name": "x", "scores": { "a": 1, "b/~": 2 } },
                    { "name": "y", "scores": { "a": 1, "c": 2 } },
                    { "name": "z", "scores": [1, 2] },
                    { "name": "w" },
                    { "scores": { "a": null, "b/~": true }, "cost": 1 },
                ],
            }),
        ),
    ];
    let pack = DecisionPack::new();
    let report: Vec<_> = cases
        .iter()
        .map(|(title, inputs)| {
            let lines = wrong_fields(&pack, inputs);
            let lines = lines
                .iter()
                .map(|field| format!("  {:<24} {}", format!("{:?}", field.pointer), field.detail));
            format!("{title}\n{}", lines.collect::<Vec<_>>().join("\n"))
        })
        .collect();
    insta::assert_snapshot!("refusals", report.join("\n"));
}

#[test]
fn reports_no_more_wrong_fields_than_anyone_reads() {
    let scores: serde_json::Map<_, _> = (0..1_000).map(|index| (format!("s{index}"), json!("x"))).collect();
    let inputs = json!({ "criteria": [{ "name": "a", "weight": 1 }], "options": [{ "name": "x", "scores": scores }, 1] });
    assert_eq!(wrong_fields(&DecisionPack::new(), &inputs).len(), 50);
}

/// Small whole numbers: two different results are then further apart than rounding, and the
/// properties below hold without ifs.
fn small_tables() -> impl Strategy<Value = (Vec<f64>, Vec<bool>, Vec<Vec<f64>>)> {
    (1_usize..=5, 2_usize..=5).prop_flat_map(|(criteria, options)| {
        let weight = (1_u8..=5).prop_map(f64::from);
        let score = (0_u8..=4).prop_map(f64::from);
        (
            prop::collection::vec(weight, criteria),
            prop::collection::vec(any::<bool>(), criteria),
            prop::collection::vec(prop::collection::vec(score, criteria), options),
        )
    })
}

fn finite() -> impl Strategy<Value = f64> {
    use prop::num::f64::{NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
    NORMAL | SUBNORMAL | ZERO | POSITIVE | NEGATIVE
}

fn winner_with(
    weights: &[f64],
    minimized: &[bool],
    scores: &[Vec<f64>],
    criterion: usize,
    weight: f64,
) -> Value {
    let mut weights = weights.to_vec();
    weights[criterion] = weight;
    decide(&table(&weights, minimized, scores))
}

fn score_of(data: &Value, option: &Value) -> f64 {
    let mut options = data["options"].as_array().unwrap().iter();
    options.find(|candidate| candidate["name"] == *option).unwrap()["score"].as_f64().unwrap()
}

proptest! {
    /// `decide` holds every result against the schema, which bounds all numbers; JSON has no others.
    #[test]
    fn never_yields_a_number_that_is_none(
        (weights, minimized, scores) in (1_usize..=4, 2_usize..=4).prop_flat_map(|(criteria, options)| (
            prop::collection::vec(finite().prop_map(f64::abs).prop_filter("zero", |weight| 0.0 < *weight), criteria),
            prop::collection::vec(any::<bool>(), criteria),
            prop::collection::vec(prop::collection::vec(finite(), criteria), options),
        )),
    ) {
        decide(&table(&weights, &minimized, &scores));
    }

    #[test]
    fn ranks_alike_on_any_scale_of_weights((weights, minimized, scores) in small_tables(), scale in 1e-9_f64..1e9) {
        let scaled: Vec<_> = weights.iter().map(|weight| weight * scale).collect();
        let (plain, scaled) = (decide(&table(&weights, &minimized, &scores)), decide(&table(&scaled, &minimized, &scores)));
        for part in ["winner", "runner_up", "criteria", "options", "rankings", "agreement"] {
            prop_assert_eq!(&plain[part], &scaled[part]);
        }
    }

    #[test]
    fn dominating_options_win((weights, minimized, mut scores) in small_tables()) {
        let best = minimized.iter().map(|minimized| if *minimized { -1.0 } else { 9.0 }).collect();
        scores.push(best);
        let data = decide(&table(&weights, &minimized, &scores));
        prop_assert_eq!(&data["winner"]["option"], &json!(format!("o{}", scores.len() - 1)));
        prop_assert_eq!(&data["winner"]["tie"], &json!(false));
        prop_assert_eq!(&data["agreement"]["same_winner"], &json!(true));
        prop_assert_eq!(&data["sensitivity"]["most_critical"], &Value::Null);
    }

    #[test]
    fn the_winner_changes_just_where_the_analysis_says((weights, minimized, scores) in small_tables()) {
        let data = decide(&table(&weights, &minimized, &scores));
        let winner = &data["winner"]["option"];
        for (criterion, weight) in weights.iter().enumerate() {
            let with = |weight: f64| winner_with(&weights, &minimized, &scores, criterion, weight);
            let flip = &data["sensitivity"]["criteria"][criterion]["flip"];
            if flip.is_null() {
                for factor in [1e-6, 0.1, 0.5, 2.0, 10.0, 1e6] {
                    let changed = with(weight * factor);
                    prop_assert!(score_of(&changed, &changed["winner"]["option"]) <= score_of(&changed, winner));
                }
                continue;
            }
            let at = flip["input_weight"].as_f64().unwrap();
            let (just_short, just_past) = match flip["direction"].as_str().unwrap() {
                "increase" => (at * 0.999, at * 1.001),
                _ => (at * 1.001, at * 0.999),
            };
            let past = with(just_past);
            prop_assert_ne!(&past["winner"]["option"], winner);
            prop_assert!(score_of(&past, winner) <= score_of(&past, &flip["new_winner"]));
            // Unless it is so near that short of it is beyond today's weight.
            if (just_short - weight).signum() == (at - weight).signum() {
                prop_assert_eq!(&with(just_short)["winner"]["option"], winner);
            }
        }
    }
}
