//! Plans: what a tenant may buy. Zero means without limit.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{
    id::{KeyId, TenantId},
    limit::{GateLimits, KeyLimits, Month},
    money::UsdMicros,
    price::{RESERVATION_MAX, RESERVATION_MIN},
    scope::Scopes,
};

/// A plan's limits. Written as JSON, one without limit is `null`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The plan's name.
    pub plan: String,
    /// The packs that it may buy; `None` allows all.
    pub allowed_packs: Option<Vec<String>>,
    /// The most that one run may reserve; zero leaves the platform's $10,000.
    #[serde(rename = "run_cost_max_usd", serialize_with = "amount_or_null")]
    pub run_cost_max: UsdMicros,
    /// The same for runs of one pack, beside it; a pack that is not named has none of its own.
    #[serde(rename = "pack_cost_max_usd")]
    pub pack_cost_max: BTreeMap<String, UsdMicros>,
    /// New runs a minute; zero is unlimited.
    #[serde(serialize_with = "count_or_null")]
    pub runs_per_minute: i32,
    /// All other requests a minute; zero is unlimited.
    #[serde(serialize_with = "count_or_null")]
    pub polls_per_minute: i32,
    /// Runs open at once; zero is unlimited.
    #[serde(serialize_with = "count_or_null")]
    pub concurrent_runs_max: i32,
    /// The most that a UTC month may cost; zero is unlimited.
    #[serde(rename = "monthly_spend_max_usd", serialize_with = "amount_or_null")]
    pub monthly_spend_max: UsdMicros,
    /// The longest timebox that a run may ask for.
    pub timebox_secs_max: i32,
    /// How long results are kept.
    pub retention_days: i32,
}

/// Whose request it is.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The tenant.
    pub tenant_id: TenantId,
    /// The key that it came with.
    pub key_id: KeyId,
    /// What that key may do.
    pub scopes: Scopes,
    /// Until when it works, if it ends by itself.
    pub key_expires_at: Option<DateTime<Utc>>,
    /// Whether the tenant may not buy now.
    pub suspended: bool,
    /// What the tenant may buy.
    pub plan: Plan,
    /// What the key is limited to, with those that share its limits.
    pub key_limits: Option<KeyLimits>,
    /// The month when the key was looked up.
    pub month: Month,
}

impl Caller {
    /// What the gate holds this caller's submits against.
    pub fn gate_limits(&self) -> GateLimits {
        let key_runs = self.key_limits.as_ref().filter(|limits| limits.runs_per_minute > 0);
        GateLimits {
            runs_per_minute: self.plan.runs_per_minute,
            key_runs_per_minute: key_runs.map(|limits| (limits.root, limits.runs_per_minute)),
            concurrent_runs_max: self.plan.concurrent_runs_max,
            monthly_spend_max: Some((self.month, self.plan.monthly_spend_max))
                .filter(|(_, amount)| !amount.is_zero()),
        }
    }
}

/// Why a plan refuses a submit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlanRefusal {
    /// The pack is not among the plan's.
    PackNotAllowed,
    /// The cap is above what one run, or one of this pack, may reserve.
    MaxCostExceedsPlan {
        /// The most that this plan allows.
        limit: UsdMicros,
    },
    /// The cap is below what any run must reserve.
    MaxCostTooLow {
        /// The least that can be reserved.
        least: UsdMicros,
    },
    /// The timebox is outside 1 second to the plan's longest.
    TimeboxOutOfRange {
        /// The longest allowed.
        secs_max: i32,
    },
}

/// The timebox of a run that names none, where the plan allows as much.
const TIMEBOX_SECS_DEFAULT: i32 = 120;

impl Plan {
    /// The most that one run may reserve under this plan.
    pub fn reservation_max(&self) -> UsdMicros {
        if self.run_cost_max.is_zero() { RESERVATION_MAX } else { self.run_cost_max.min(RESERVATION_MAX) }
    }

    /// The most that one run of this pack may reserve.
    pub fn reservation_max_of(&self, pack_type: &str) -> UsdMicros {
        let all = self.reservation_max();
        self.pack_cost_max.get(pack_type).map_or(all, |cap| all.min(*cap))
    }

    /// The timebox of a run that names none.
    pub fn timebox_secs_default(&self) -> i32 {
        TIMEBOX_SECS_DEFAULT.min(self.timebox_secs_max)
    }

    /// Judges what a submit asks for.
    ///
    /// # Errors
    /// [`PlanRefusal`]
    pub fn admits(
        &self,
        pack_type: &str,
        max_cost: UsdMicros,
        timebox_secs: i64,
    ) -> Result<i32, PlanRefusal> {
        if self.allowed_packs.as_ref().is_some_and(|packs| !packs.iter().any(|pack| pack == pack_type)) {
            return Err(PlanRefusal::PackNotAllowed);
        }
        if max_cost < RESERVATION_MIN {
            return Err(PlanRefusal::MaxCostTooLow { least: RESERVATION_MIN });
        }
        let limit = self.reservation_max_of(pack_type);
        if max_cost > limit {
            return Err(PlanRefusal::MaxCostExceedsPlan { limit });
        }
        match i32::try_from(timebox_secs) {
            Ok(secs) if (1..=self.timebox_secs_max).contains(&secs) => Ok(secs),
            _ => Err(PlanRefusal::TimeboxOutOfRange { secs_max: self.timebox_secs_max }),
        }
    }
}

fn count_or_null<S: serde::Serializer>(count: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    Some(*count).filter(|count| *count != 0).serialize(serializer)
}

fn amount_or_null<S: serde::Serializer>(amount: &UsdMicros, serializer: S) -> Result<S::Ok, S::Error> {
    Some(*amount).filter(|amount| !amount.is_zero()).serialize(serializer)
}
