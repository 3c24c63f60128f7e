//! Limits: how often, how many at once, and how much in a month or by one key.

use std::time::Duration;

use serde::Serialize;

use super::{id::KeyId, money::UsdMicros};

/// The window that requests are counted in: any minute, not the clock's.
pub const WINDOW: Duration = Duration::from_secs(60);

/// A UTC month, counted in months since the year 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Month(pub i64);

/// Which requests are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Submits of new runs that were admitted.
    Runs,
    /// All other requests that come with a key, replays of submits included.
    Polls,
}

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// The tenant's, by its plan.
    Tenant,
    /// The key's, together with those that were made with it.
    Key,
}

/// A limit of requests in any minute, and what is left of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Whose.
    pub of: Of,
    /// Of what.
    pub counted: Counted,
    /// The most in any minute.
    pub max: i32,
    /// How many more now.
    pub left: i32,
    /// When there will be at least one more than that.
    pub more_in: Duration,
}

impl Quota {
    /// Its name in the fields RateLimit and RateLimit-Policy.
    pub fn name(&self) -> &'static str {
        match (self.of, self.counted) {
            (Of::Tenant, Counted::Runs) => "runs",
            (Of::Tenant, Counted::Polls) => "polls",
            (Of::Key, Counted::Runs) => "key-runs",
            (Of::Key, Counted::Polls) => "key-polls",
        }
    }
}

/// Limits of a key's own, which it shares with its successors and the keys that were made with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyLimits {
    /// The key that they were given to: the name of all who share them.
    #[serde(rename = "limits_key_id")]
    pub root: KeyId,
    /// New runs a minute; zero is unlimited.
    pub runs_per_minute: i32,
    /// Other requests a minute; zero is unlimited.
    pub polls_per_minute: i32,
    /// The most that its runs may cost, ever; `None` is unlimited.
    #[serde(rename = "max_spend_usd")]
    pub spend_max: Option<UsdMicros>,
}

/// What the gate holds a submit against, besides the budget. Zero means without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GateLimits {
    /// New runs a minute of the tenant.
    pub runs_per_minute: i32,
    /// New runs a minute of a key and its like.
    pub key_runs_per_minute: Option<(KeyId, i32)>,
    /// Runs open at once.
    pub concurrent_runs_max: i32,
    /// The most that a month may cost, and which month it is.
    pub monthly_spend_max: Option<(Month, UsdMicros)>,
}
