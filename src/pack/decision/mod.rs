//! Multi-criteria decision analysis: which of some options is best, by how much, and how sure that
//! is. Plain mathematics on the buyer's own scores; no model, no network.

mod analysis;
mod inputs;
mod report;

use std::{future::Future, pin::Pin};

use serde_json::{Value, json};

use self::{analysis::Analysis, inputs::Problem};
use super::{Failure, Job, Pack, Product, Quote, Refusal, Terms};
use crate::domain::{
    money::UsdMicros,
    price::{PriceList, UnitPrice},
};

const BASE: UsdMicros = UsdMicros::constant(10_000);
const SCORE: UnitPrice = UnitPrice { unit: "score", price: UsdMicros::constant(500) };

/// The pack `decision`.
#[derive(Clone, Debug)]
pub struct DecisionPack {
    terms: Terms,
}

impl DecisionPack {
    /// The pack. It needs nothing.
    pub fn new() -> Self {
        let terms = Terms {
            pack_type: "decision",
            version: "1.0.0",
            summary: "Ranks options by weighted criteria, with a second method and exact sensitivity analysis.",
            input_schema: inputs::schema(),
            output_schema: report::schema(),
            prices: PriceList { base: BASE, units: const { &[SCORE] } },
            limits: json!({
                "criteria_max": inputs::CRITERIA_MAX,
                "options_max": inputs::OPTIONS_MAX,
                "name_chars_max": inputs::NAME_CHARS_MAX,
                "question_chars_max": inputs::QUESTION_CHARS_MAX,
                "context_chars_max": inputs::CONTEXT_CHARS_MAX,
            }),
        };
        Self { terms }
    }
}

impl Default for DecisionPack {
    fn default() -> Self {
        Self::new()
    }
}

impl Pack for DecisionPack {
    fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Quotes the exact cost: it depends on the size of the table alone.
    fn check(&self, inputs: &Value) -> Result<Quote, Refusal> {
        let problem = Problem::read(inputs)?;
        let at_least = SCORE
            .price
            .checked_mul(problem.score_count())
            .and_then(|scores| scores.checked_add(BASE))
            // At most 2500 scores: $1.26.
            .unwrap_or(UsdMicros::MAX);
        Ok(Quote { at_least })
    }

    fn run(&self, job: Job) -> Pin<Box<dyn Future<Output = Result<Product, Failure>> + Send + '_>> {
        // At most 50 × 50 scores: well under a millisecond, so it need not leave the async thread.
        Box::pin(async move { decide(&job) })
    }
}

fn decide(job: &Job) -> Result<Product, Failure> {
    let problem = Problem::read(&job.inputs).map_err(|_refused_since_submit| Failure {
        reason_code: "invalid_inputs",
        detail: "the inputs are not acceptable to this version of the pack".to_owned(),
    })?;
    job.meter.charge(BASE, 1)?;
    job.meter.charge(SCORE.price, problem.score_count())?;
    let analysis = Analysis::of(&problem);
    let log = format!("Compared {} options by {} criteria.", problem.options.len(), problem.criteria.len());
    Ok(Product { data: report::data(&problem, &analysis), logs: vec![log] })
}
