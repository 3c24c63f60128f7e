//! The result object, `pack_envelope.json`, version 1.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;

use crate::domain::{
    id::{RunId, TraceId},
    money::UsdMicros,
};

/// What a buyer downloads.
#[derive(Debug, Serialize)]
pub struct PackEnvelope<'a> {
    /// Always `"1"`.
    pub schema_version: &'static str,
    /// The run.
    pub run_id: RunId,
    /// What was bought.
    pub pack_type: &'a str,
    /// The version of the pack that did it.
    pub pack_version: &'a str,
    /// Always `COMPLETED`: other ends have no envelope.
    pub status: &'static str,
    /// When the work ended.
    pub generated_at: DateTime<Utc>,
    /// What it cost.
    pub cost: Cost,
    /// The pack's result.
    pub data: &'a Value,
    /// Further objects of the result; none so far.
    pub artifacts: [(); 0],
    /// What the pack had to say.
    pub logs: &'a [String],
    /// Where it came from.
    pub meta: Meta,
}

/// An envelope's cost.
#[derive(Debug, Serialize)]
pub struct Cost {
    /// The hold.
    pub reserved_usd: UsdMicros,
    /// The charge.
    pub used_usd: UsdMicros,
    /// What it would have paid at least.
    pub minimum_fee_usd: UsdMicros,
}

/// An envelope's origin.
#[derive(Debug, Serialize)]
pub struct Meta {
    /// The run's trace.
    pub trace_id: TraceId,
    /// Which taking of the run made it, from 1.
    pub attempt: i32,
}
