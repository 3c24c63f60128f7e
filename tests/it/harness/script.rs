//! A pack that does what its inputs say, for what no honest pack does: panic, overrun, ignore its meter.

use std::{future::Future, pin::Pin, sync::Arc};

use dpp::{
    domain::{money::UsdMicros, price::PriceList},
    pack::{Failure, Job, Pack, Product, Quote, Refusal, Terms},
};
use serde_json::{Value, json};
use tokio::sync::watch;

/// What scripted packs wait for.
#[derive(Clone)]
pub struct Script(Arc<watch::Sender<bool>>);

impl Default for Script {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Script {
    /// From now on, what waits waits until [`Script::go_on`].
    pub fn hold(&self) {
        self.0.send_replace(false);
    }

    /// From now on, nothing waits.
    pub fn go_on(&self) {
        self.0.send_replace(true);
    }
}

/// Sold as `scripted`. Its inputs are `{"acts": [...]}`: `"charge 0.1000"`, `"wait"` (for
/// [`Script::go_on`]), `"fail"`, `"panic"`, `"overrun"`.
pub struct ScriptedPack {
    terms: Terms,
    script: Script,
}

impl ScriptedPack {
    pub fn new(script: Script) -> Self {
        let terms = Terms {
            pack_type: "scripted",
            version: "1",
            summary: "Does what its inputs say.",
            input_schema: json!({"type": "object"}),
            output_schema: json!({"type": "object"}),
            prices: PriceList { base: UsdMicros::ZERO, units: &[] },
            limits: json!({}),
        };
        Self { terms, script }
    }
}

impl Pack for ScriptedPack {
    fn terms(&self) -> &Terms {
        &self.terms
    }

    fn check(&self, _: &Value) -> Result<Quote, Refusal> {
        Ok(Quote { at_least: UsdMicros::ZERO })
    }

    fn run(&self, job: Job) -> Pin<Box<dyn Future<Output = Result<Product, Failure>> + Send + '_>> {
        let mut go_on = self.script.0.subscribe();
        Box::pin(async move {
            for act in job.inputs["acts"].as_array().into_iter().flatten() {
                match act.as_str().unwrap().split_once(' ').unwrap_or((act.as_str().unwrap(), "")) {
                    // The meter refuses what is above the cap; this pack does not care.
                    ("charge", price) => drop(job.meter.charge(price.parse().unwrap(), 1)),
                    ("wait", _) => drop(go_on.wait_for(|go_on| *go_on).await.unwrap()),
                    ("fail", _) => {
                        return Err(Failure {
                            reason_code: "scripted",
                            detail: "As its inputs said.".to_owned(),
                        });
                    }
                    ("panic", _) => std::panic::resume_unwind(Box::new("a scripted panic")),
                    ("overrun", _) => std::future::pending().await,
                    other => panic!("no act {other:?}"),
                }
            }
            Ok(Product { data: json!({"acts": job.inputs["acts"]}), logs: Vec::new() })
        })
    }
}

/// A submit's body for it.
pub fn scripted(max_cost_usd: &str, acts: &[&str]) -> Value {
    json!({"pack_type": "scripted", "max_cost_usd": max_cost_usd, "inputs": {"acts": acts}})
}
