//! The queue's message, version 1. It is only a hint that a run may be taken: the database decides.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::domain::id::{RunId, TenantId, TraceId};

/// Wakes a worker for one run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunMessage {
    /// Always `"1"`.
    pub schema_version: SchemaVersion,
    /// The run.
    pub run_id: RunId,
    /// Its buyer.
    pub tenant_id: TenantId,
    /// What was bought.
    pub pack_type: String,
    /// When this message was made.
    pub enqueued_at: DateTime<Utc>,
    /// The run's trace.
    pub trace_id: TraceId,
}

/// The one version that this build reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SchemaVersion {
    /// Version 1.
    #[serde(rename = "1")]
    V1,
}
