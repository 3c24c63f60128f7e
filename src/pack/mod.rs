//! Packs: the work that DPP sells.
//!
//! A pack gets its inputs, a deadline, a meter and outbound clients, and nothing else: no run, no
//! lease, no balance, no infrastructure. The API checks inputs and the worker runs them through one
//! [`Registry`], so a type that can be bought can be worked on.

pub mod decision;
mod fields;
pub mod url;

use std::{future::Future, pin::Pin, sync::Arc};

use serde::Serialize;
use serde_json::Value;

use crate::domain::{
    money::UsdMicros,
    price::{CapReached, Meter, PriceList},
};

/// One kind of work: its name, its terms, and how it is done.
pub trait Pack: Send + Sync + 'static {
    /// What buyers see: name, schemas, prices.
    fn terms(&self) -> &Terms;

    /// Judges inputs before money moves. The API calls this at submit.
    ///
    /// # Errors
    /// [`Refusal`], with every wrong field named.
    fn check(&self, inputs: &Value) -> Result<Quote, Refusal>;

    /// Does the work. Charges the meter as it goes; may be dropped at any await, at the deadline at
    /// the latest, and then pays for what the meter has counted.
    ///
    /// # Errors
    /// [`Failure`] when these inputs cannot be served.
    fn run(&self, job: Job) -> Pin<Box<dyn Future<Output = Result<Product, Failure>> + Send + '_>>;
}

/// The public terms of a pack, as `GET /v1/packs/{pack_type}` shows them.
#[derive(Clone, Debug, Serialize)]
pub struct Terms {
    /// The name by which it is bought: lower-case letters, digits, `_` and `-`.
    pub pack_type: &'static str,
    /// Changes whenever the output may change.
    pub version: &'static str,
    /// One sentence on what it does.
    pub summary: &'static str,
    /// JSON Schema (2020-12) of `inputs`.
    pub input_schema: Value,
    /// JSON Schema (2020-12) of the envelope's `data`.
    pub output_schema: Value,
    /// What it costs.
    pub prices: PriceList,
    /// Bounds that a buyer should know, by name and unit, such as `"page_bytes_max": 10485760`.
    pub limits: Value,
}

/// What is known of the cost before the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    /// No run of these inputs can cost less than this.
    pub at_least: UsdMicros,
}

/// Why inputs are not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The inputs are wrong; each entry says where and what would be right.
    InvalidInputs(Vec<FieldError>),
    /// The inputs are fine, but this deployment cannot serve them; the text says why.
    Unavailable(String),
}

/// One wrong field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// JSON Pointer (RFC 6901) within `inputs`, such as `/options/0/name`.
    pub pointer: String,
    /// What is wrong and what would be right.
    pub detail: String,
}

/// One piece of work, as a pack sees it.
#[derive(Debug)]
pub struct Job {
    /// Inputs that [`Pack::check`] accepted.
    pub inputs: Value,
    /// The run is cut off here.
    pub deadline: tokio::time::Instant,
    /// What the work costs is charged here.
    pub meter: Meter,
}

/// What finished work yields.
#[derive(Clone, Debug)]
pub struct Product {
    /// The envelope's `data`; fits the pack's output schema.
    pub data: Value,
    /// Plain sentences for the envelope's `logs`.
    pub logs: Vec<String>,
}

/// Why a pack could not do its work. The buyer pays what the meter counted, at least the minimum
/// fee.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// A stable lower-case code with underscores, such as `fetch_failed`.
    pub reason_code: &'static str,
    /// A sentence for the buyer; holds nothing of our infrastructure.
    pub detail: String,
}

impl From<CapReached> for Failure {
    fn from(reached: CapReached) -> Self {
        Self { reason_code: "max_cost_reached", detail: reached.to_string() }
    }
}

/// All packs of this deployment, by name.
#[derive(Clone)]
pub struct Registry {
    packs: Arc<[Box<dyn Pack>]>,
}

impl Registry {
    /// A registry of `packs`, in the order in which they are listed.
    pub fn new(packs: Vec<Box<dyn Pack>>) -> Self {
        Self { packs: packs.into() }
    }

    /// The pack that is sold as `pack_type`.
    pub fn find(&self, pack_type: &str) -> Option<&dyn Pack> {
        self.iter().find(|pack| pack.terms().pack_type == pack_type)
    }

    /// All packs.
    pub fn iter(&self) -> impl Iterator<Item = &dyn Pack> {
        self.packs.iter().map(AsRef::as_ref)
    }
}
