//! A run: its legal states, and the proofs that let money and results move.
//!
//! Nothing here acts. The store applies a transition by compare-and-set and answers [`Cas`]; only a
//! won one yields the proof ([`Leased`], [`Claimed`], [`Settled`]) that the next effect asks for, so
//! whoever lost a race cannot even spell the settlement.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::{
    id::{FinalizeToken, LeaseToken, RunId, TenantId, TraceId},
    money::UsdMicros,
};

/// The answer of a compare-and-set. A loser stops without a side effect and does not try again.
#[derive(Debug)]
#[must_use = "a lost race must end the caller's work"]
pub enum Cas<T> {
    /// This caller made the transition.
    Won(T),
    /// Somebody else was first.
    Lost,
}

/// One unit of bought work.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its id.
    pub run_id: RunId,
    /// Who bought it.
    pub tenant_id: TenantId,
    /// What was bought.
    pub pack_type: String,
    /// The hash of the request that bought it.
    pub payload_sha256: [u8; 32],
    /// Counts changes of state.
    pub version: i64,
    /// The hold: the most that it may cost.
    pub reserved: UsdMicros,
    /// What it pays at least once it was worked on.
    pub minimum_fee: UsdMicros,
    /// How long the work may take.
    pub timebox_secs: i32,
    /// How often a worker has taken it.
    pub attempts: i32,
    /// The trace that it belongs to.
    pub trace_id: TraceId,
    /// The buyer's own notes.
    pub metadata: Value,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// When it was first taken.
    pub started_at: Option<DateTime<Utc>>,
    /// Whether its buyer wishes it to stop.
    pub cancel_requested: bool,
    /// Where it stands.
    pub state: RunState,
}

/// Every state that a run can be in, each with only what exists in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Waiting for a worker.
    Queued,
    /// A worker has it.
    Processing {
        /// Until when, and by which token.
        lease: Lease,
    },
    /// The work is done; its upload and final commit are under way.
    Claimed {
        /// By whom, since when.
        claim: Claim,
    },
    /// The object contradicts the books; a person decides. The hold stays.
    AuditRequired {
        /// The claim that led here.
        claim: Claim,
        /// What contradicts what.
        reason: String,
    },
    /// Done and paid.
    Completed {
        /// What it cost.
        charge: UsdMicros,
        /// Where its result lies.
        result: ResultRef,
        /// When, and until when its result is kept.
        end: End,
    },
    /// Could not be done.
    Failed {
        /// What it cost.
        charge: UsdMicros,
        /// Why.
        reason: Reason,
        /// When, and until when it is shown.
        end: End,
    },
    /// Waited too long; free.
    Expired {
        /// Why.
        reason: Reason,
        /// When, and until when it is shown.
        end: End,
    },
    /// Stopped at the buyer's wish.
    Cancelled {
        /// What it cost.
        charge: UsdMicros,
        /// When, and until when it is shown.
        end: End,
    },
}

/// A worker's temporary right to work on a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Names the taking.
    pub token: LeaseToken,
    /// By the database's clock.
    pub expires_at: DateTime<Utc>,
}

/// A won right to finish a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Names the claim.
    pub token: FinalizeToken,
    /// By the database's clock.
    pub claimed_at: DateTime<Utc>,
    /// Where the result is being put; names the attempt, so no other attempt can overwrite it.
    pub result_key: String,
    /// What the work cost, as the worker metered it.
    pub cost: UsdMicros,
    /// SHA-256 of the bytes being put, lower-case hex.
    pub sha256: String,
}

/// Where a result lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResultRef {
    /// The object's key in the result bucket.
    pub key: String,
    /// SHA-256 of its bytes, lower-case hex.
    pub sha256: String,
}

/// The end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// When it ended.
    pub completed_at: DateTime<Utc>,
    /// From this instant on the run is gone for its owner.
    pub retention_until: DateTime<Utc>,
}

/// Why a run ended without a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Stable, lower case with underscores.
    pub code: String,
    /// A sentence for the buyer.
    pub detail: String,
}

impl Reason {
    /// The platform lost the work too often.
    pub fn lost(attempts: i32) -> Self {
        Self {
            code: "platform_lost".to_owned(),
            detail: format!(
                "The platform lost this run {attempts} times, the most it may; submit it again under a new Idempotency-Key."
            ),
        }
    }

    /// Nobody took the run in time.
    pub fn expired_in_queue() -> Self {
        Self {
            code: "expired_in_queue".to_owned(),
            detail: "No worker took this run in time; nothing was charged.".to_owned(),
        }
    }

    /// The work took longer than its timebox.
    pub fn timed_out(timebox_secs: i32) -> Self {
        Self {
            code: "timed_out".to_owned(),
            detail: format!("The work did not end within its timebox of {timebox_secs} s."),
        }
    }

    /// The pack broke.
    pub fn pack_crashed() -> Self {
        Self {
            code: "pack_crashed".to_owned(),
            detail: "The pack stopped unexpectedly; the platform has logged why.".to_owned(),
        }
    }
}

impl Run {
    /// Whether this run is past its retention at `now`. The instant itself is past.
    pub fn is_past_retention(&self, now: DateTime<Utc>) -> bool {
        self.state.end().is_some_and(|end| now >= end.retention_until)
    }

    /// Whether it has ended.
    pub fn is_terminal(&self) -> bool {
        self.state.end().is_some()
    }

    /// Its result, where it has one.
    pub fn result(&self) -> Option<&ResultRef> {
        match &self.state {
            RunState::Completed { result, .. } => Some(result),
            _ => None,
        }
    }
}

impl RunState {
    /// Every status, as the outside names it.
    pub const STATUSES: [&'static str; 6] =
        ["QUEUED", "PROCESSING", "COMPLETED", "FAILED", "EXPIRED", "CANCELLED"];

    /// As the outside names it.
    pub fn status(&self) -> &'static str {
        match self {
            Self::Queued => "QUEUED",
            Self::Processing { .. } | Self::Claimed { .. } | Self::AuditRequired { .. } => "PROCESSING",
            Self::Completed { .. } => "COMPLETED",
            Self::Failed { .. } => "FAILED",
            Self::Expired { .. } => "EXPIRED",
            Self::Cancelled { .. } => "CANCELLED",
        }
    }

    /// What became of the hold (CONTRACT §4.5).
    pub fn money_state(&self) -> &'static str {
        match self {
            Self::Queued | Self::Processing { .. } | Self::Claimed { .. } => "RESERVED",
            Self::AuditRequired { .. } => "AUDIT_REQUIRED",
            ended => match ended.charge() {
                Some(charge) if !charge.is_zero() => "SETTLED",
                _ => "REFUNDED",
            },
        }
    }

    /// The final cost; `None` until the run has ended.
    pub fn charge(&self) -> Option<UsdMicros> {
        match self {
            Self::Queued | Self::Processing { .. } | Self::Claimed { .. } | Self::AuditRequired { .. } => {
                None
            }
            Self::Completed { charge, .. } | Self::Failed { charge, .. } | Self::Cancelled { charge, .. } => {
                Some(*charge)
            }
            Self::Expired { .. } => Some(UsdMicros::ZERO),
        }
    }

    /// The end, once there.
    pub fn end(&self) -> Option<End> {
        match self {
            Self::Queued | Self::Processing { .. } | Self::Claimed { .. } | Self::AuditRequired { .. } => {
                None
            }
            Self::Completed { end, .. }
            | Self::Failed { end, .. }
            | Self::Expired { end, .. }
            | Self::Cancelled { end, .. } => Some(*end),
        }
    }
}

/// Proof that this process took a run; what the worker needs to do the work.
#[derive(Clone, Debug)]
pub struct Leased {
    /// The run.
    pub run_id: RunId,
    /// Its buyer.
    pub tenant_id: TenantId,
    /// What to do.
    pub pack_type: String,
    /// With what.
    pub inputs: Value,
    /// The most it may cost.
    pub reserved: UsdMicros,
    /// What it pays at least.
    pub minimum_fee: UsdMicros,
    /// How long it may take.
    pub timebox_secs: i32,
    /// Which taking this is, from 1.
    pub attempt: i32,
    /// Its trace.
    pub trace_id: TraceId,
    /// The run's version as taken; beats do not raise it.
    pub version: i64,
    /// The taking's name.
    pub token: LeaseToken,
}

/// Proof of a won claim. Uploading and completing ask for it.
#[derive(Debug)]
pub struct Claimed {
    run_id: RunId,
    tenant_id: TenantId,
    trace_id: TraceId,
    reserved: UsdMicros,
    version: i64,
    claim: Claim,
}

impl Claimed {
    /// Made by the store alone, where a claim was won (or read back by a reconciler, which must
    /// still win the final compare-and-set under the claim's token).
    pub fn won(
        run_id: RunId,
        tenant_id: TenantId,
        trace_id: TraceId,
        reserved: UsdMicros,
        version: i64,
        claim: Claim,
    ) -> Self {
        Self { run_id, tenant_id, trace_id, reserved, version, claim }
    }

    /// The run.
    pub fn run_id(&self) -> RunId {
        self.run_id
    }

    /// Its buyer.
    pub fn tenant_id(&self) -> TenantId {
        self.tenant_id
    }

    /// Its trace.
    pub fn trace_id(&self) -> TraceId {
        self.trace_id
    }

    /// Its hold.
    pub fn reserved(&self) -> UsdMicros {
        self.reserved
    }

    /// The run's version as claimed.
    pub fn version(&self) -> i64 {
        self.version
    }

    /// The claim.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }
}

/// Proof that the ledger has ended a hold; the gate follows it.
#[derive(Debug)]
pub struct Settled {
    run_id: RunId,
    tenant_id: TenantId,
    trace_id: TraceId,
    charge: UsdMicros,
}

impl Settled {
    /// Made by the store alone, where a final compare-and-set was won.
    pub fn won(run_id: RunId, tenant_id: TenantId, trace_id: TraceId, charge: UsdMicros) -> Self {
        Self { run_id, tenant_id, trace_id, charge }
    }

    /// The run.
    pub fn run_id(&self) -> RunId {
        self.run_id
    }

    /// Its buyer.
    pub fn tenant_id(&self) -> TenantId {
        self.tenant_id
    }

    /// Its trace.
    pub fn trace_id(&self) -> TraceId {
        self.trace_id
    }

    /// What it cost.
    pub fn charge(&self) -> UsdMicros {
        self.charge
    }
}
