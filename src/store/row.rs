//! Rows of `runs` as [`Run`]: the one place where text columns become a state. A row that no code of
//! this version writes is an error, never a guess.

use chrono::{DateTime, Utc};
use diesel::{
    QueryableByName,
    sql_types::{BigInt, Bool, Bytea, Integer, Json, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use uuid::Uuid;

use super::Error;
use crate::domain::{
    id::{FinalizeToken, LeaseToken, RunId, TenantId},
    money::UsdMicros,
    run::{Claim, End, Lease, Reason, ResultRef, Run, RunState},
};

/// The columns that [`RunRow`] reads, for `SELECT` and `RETURNING`.
macro_rules! run_columns {
    () => {
        "run.run_id, run.tenant_id, run.pack_type, run.payload_sha256, run.version, run.reserved_usd_micros, \
         run.minimum_fee_usd_micros, run.actual_cost_usd_micros, run.timebox_secs, run.attempts, run.trace_id, \
         run.metadata, run.status, run.money_state, run.finalize_stage, run.lease_token, run.lease_expires_at, \
         run.finalize_token, run.claimed_at, run.claim_cost_usd_micros, run.result_key, run.result_sha256, \
         run.reason_code, run.reason_detail, run.created_at, run.started_at, run.completed_at, run.retention_until, \
         run.cancel_requested_at IS NOT NULL AS cancel_requested"
    };
}
pub(super) use run_columns;

#[derive(QueryableByName)]
pub(super) struct RunRow {
    #[diesel(sql_type = SqlUuid)]
    run_id: Uuid,
    #[diesel(sql_type = SqlUuid)]
    tenant_id: Uuid,
    #[diesel(sql_type = Text)]
    pack_type: String,
    #[diesel(sql_type = Bytea)]
    payload_sha256: Vec<u8>,
    #[diesel(sql_type = BigInt)]
    version: i64,
    #[diesel(sql_type = BigInt)]
    reserved_usd_micros: i64,
    #[diesel(sql_type = BigInt)]
    minimum_fee_usd_micros: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    actual_cost_usd_micros: Option<i64>,
    #[diesel(sql_type = Integer)]
    timebox_secs: i32,
    #[diesel(sql_type = Integer)]
    attempts: i32,
    #[diesel(sql_type = Text)]
    trace_id: String,
    #[diesel(sql_type = Json)]
    metadata: serde_json::Value,
    #[diesel(sql_type = Text)]
    status: String,
    #[diesel(sql_type = Text)]
    money_state: String,
    #[diesel(sql_type = Nullable<Text>)]
    finalize_stage: Option<String>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    lease_token: Option<Uuid>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    lease_expires_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    finalize_token: Option<Uuid>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    claimed_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<BigInt>)]
    claim_cost_usd_micros: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    result_key: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    result_sha256: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    reason_code: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    reason_detail: Option<String>,
    #[diesel(sql_type = Timestamptz)]
    created_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    started_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    completed_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    retention_until: Option<DateTime<Utc>>,
    #[diesel(sql_type = Bool)]
    cancel_requested: bool,
}

impl TryFrom<RunRow> for Run {
    type Error = Error;

    fn try_from(row: RunRow) -> Result<Self, Error> {
        let state = row.state().ok_or_else(|| row.corrupt("no legal state"))?;
        // The row's own money_state is derived; here it is held against what the state says.
        if state.money_state() != row.money_state {
            return Err(row.corrupt("money_state contradicts the state"));
        }
        let amount = |micros| UsdMicros::new(micros).map_err(|bad| row.corrupt(&bad.to_string()));
        Ok(Self {
            run_id: RunId(row.run_id),
            tenant_id: TenantId(row.tenant_id),
            payload_sha256: row
                .payload_sha256
                .as_slice()
                .try_into()
                .ok()
                .ok_or_else(|| row.corrupt("payload_sha256 is not 32 bytes"))?,
            version: row.version,
            reserved: amount(row.reserved_usd_micros)?,
            minimum_fee: amount(row.minimum_fee_usd_micros)?,
            timebox_secs: row.timebox_secs,
            attempts: row.attempts,
            trace_id: row.trace_id.parse().ok().ok_or_else(|| row.corrupt("trace_id is none"))?,
            metadata: row.metadata,
            created_at: row.created_at,
            started_at: row.started_at,
            cancel_requested: row.cancel_requested,
            state,
            pack_type: row.pack_type,
        })
    }
}

impl RunRow {
    /// `None` is a combination that `runs_state_check` and `runs_end_check` forbid.
    fn state(&self) -> Option<RunState> {
        Some(match (self.status.as_str(), self.finalize_stage.as_deref()) {
            ("QUEUED", None) => RunState::Queued,
            ("PROCESSING", None) => RunState::Processing {
                lease: Lease { token: LeaseToken(self.lease_token?), expires_at: self.lease_expires_at? },
            },
            ("PROCESSING", Some("CLAIMED")) if self.money_state == "AUDIT_REQUIRED" => {
                RunState::AuditRequired { claim: self.claim()?, reason: self.reason_detail.clone()? }
            }
            ("PROCESSING", Some("CLAIMED")) => RunState::Claimed { claim: self.claim()? },
            ("COMPLETED", None) => RunState::Completed {
                charge: self.charge()?,
                result: ResultRef { key: self.result_key.clone()?, sha256: self.result_sha256.clone()? },
                end: self.end()?,
            },
            ("FAILED", None) => {
                RunState::Failed { charge: self.charge()?, reason: self.reason()?, end: self.end()? }
            }
            ("EXPIRED", None) => RunState::Expired { reason: self.reason()?, end: self.end()? },
            ("CANCELLED", None) => RunState::Cancelled { charge: self.charge()?, end: self.end()? },
            _ => return None,
        })
    }

    fn claim(&self) -> Option<Claim> {
        Some(Claim {
            token: FinalizeToken(self.finalize_token?),
            claimed_at: self.claimed_at?,
            result_key: self.result_key.clone()?,
            cost: UsdMicros::new(self.claim_cost_usd_micros?).ok()?,
            sha256: self.result_sha256.clone()?,
        })
    }

    fn charge(&self) -> Option<UsdMicros> {
        UsdMicros::new(self.actual_cost_usd_micros?).ok()
    }

    fn end(&self) -> Option<End> {
        Some(End { completed_at: self.completed_at?, retention_until: self.retention_until? })
    }

    fn reason(&self) -> Option<Reason> {
        Some(Reason { code: self.reason_code.clone()?, detail: self.reason_detail.clone()? })
    }

    fn corrupt(&self, what: &str) -> Error {
        Error::Corrupt { table: "runs", detail: format!("run {}: {what}", self.run_id) }
    }
}
