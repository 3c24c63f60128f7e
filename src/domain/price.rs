//! What work costs: price lists, the meter that adds usage up, and the fees of CONTRACT §4.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::money::UsdMicros;

/// What one pack charges: a base, and so much for each unit of each kind.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PriceList {
    /// Charged once for every run.
    #[serde(rename = "base_usd")]
    pub base: UsdMicros,
    /// Charged as used.
    pub units: &'static [UnitPrice],
}

/// The price of one kind of unit.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct UnitPrice {
    /// What is counted, in the singular: `score`, `started_100_kib`.
    pub unit: &'static str,
    /// The price of one.
    #[serde(rename = "price_usd")]
    pub price: UsdMicros,
}

/// The next charge would pass the most that the run may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the run would cost more than its max_cost_usd of {cap}")]
pub struct CapReached {
    /// The run's cap.
    pub cap: UsdMicros,
}

/// Adds up what a run has used and refuses to pass its reservation. Clones share one count, so the
/// cost so far survives a pack that panics or is cut off.
#[derive(Clone, Debug)]
pub struct Meter {
    cap: UsdMicros,
    used: Arc<Mutex<UsdMicros>>,
}

impl Meter {
    /// A meter that has counted nothing and stops at `cap`.
    pub fn new(cap: UsdMicros) -> Self {
        Self { cap, used: Arc::default() }
    }

    /// Charges `count` units at `price` each, all or none.
    ///
    /// # Errors
    /// [`CapReached`] when the sum would pass the cap; nothing is charged then.
    pub fn charge(&self, price: UsdMicros, count: u64) -> Result<(), CapReached> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = price
            .checked_mul(count)
            .and_then(|cost| used.checked_add(cost))
            .map(UsdMicros::rounded_up)
            .filter(|sum| *sum <= self.cap)
            .ok_or(CapReached { cap: self.cap })?;
        *used = sum;
        Ok(())
    }

    /// What has been used so far: a multiple of $0.0001, at most the cap.
    pub fn used(&self) -> UsdMicros {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The least a reservation may be: $0.0050.
pub const RESERVATION_MIN: UsdMicros = UsdMicros::constant(5_000);
/// The most a reservation may be, whatever the plan: $10,000.
pub const RESERVATION_MAX: UsdMicros = UsdMicros::constant(10_000_000_000);

const MINIMUM_FEE_PERCENT: u8 = 2;
const MINIMUM_FEE_LEAST: UsdMicros = UsdMicros::constant(5_000);
const MINIMUM_FEE_MOST: UsdMicros = UsdMicros::constant(100_000);

/// What a run pays at least once it was worked on: 2 % of the reservation, rounded down, at least
/// $0.0050, at most $0.1000, never above the reservation (CONTRACT §4.2).
pub fn minimum_fee(reserved: UsdMicros) -> UsdMicros {
    reserved
        .percent_rounded_down(MINIMUM_FEE_PERCENT)
        .clamp(MINIMUM_FEE_LEAST, MINIMUM_FEE_MOST)
        .min(reserved)
}
