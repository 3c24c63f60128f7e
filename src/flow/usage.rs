//! Usage: read for its tenant, and rolled up from the ledger behind its back.

use chrono::{Datelike as _, Days, NaiveDate};

use super::{Changed, Ctx, Error};
use crate::{
    domain::id::TenantId,
    store::{DueRollUp, UsageRow},
};

/// The most days that can be asked for at once: a leap year.
pub const DAYS_MAX: i64 = 366;

/// A tenant's usage over UTC days, both ends included.
#[derive(Clone, Debug)]
pub struct Usage {
    /// The first day.
    pub first: NaiveDate,
    /// The last day.
    pub last: NaiveDate,
    /// What was used, in the order of days and packs; nothing for a day without an ended run.
    pub rows: Vec<UsageRow>,
}

/// Why a range of days cannot be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRange {
    /// It ends before it begins.
    Backwards,
    /// It is longer than [`DAYS_MAX`].
    TooLong,
}

/// A tenant's usage. Without a last day up to today (or to `first`, should that be later), without a
/// first day from the beginning of the last day's month.
///
/// # Errors
/// [`Error`]
pub async fn read(
    cx: &Ctx,
    tenant_id: TenantId,
    first: Option<NaiveDate>,
    last: Option<NaiveDate>,
) -> Result<Result<Usage, BadRange>, Error> {
    let last = match (first, last) {
        (_, Some(last)) => last,
        (first, None) => {
            let today = cx.store.now().await?.date_naive();
            first.map_or(today, |first| first.max(today))
        }
    };
    let first = first.unwrap_or_else(|| last - Days::new(u64::from(last.day0())));
    if first > last {
        return Ok(Err(BadRange::Backwards));
    }
    if (last - first).num_days() >= DAYS_MAX {
        return Ok(Err(BadRange::TooLong));
    }
    Ok(Ok(Usage { first, last, rows: cx.store.usage(tenant_id, first, last).await? }))
}

/// Rolls a tenant's usage up as far as is safe: up to a snapshot, which was taken under the tenant's
/// exclusive lock. Dying anywhere in here leaves a snapshot, or a mark further on, and both are true.
///
/// # Errors
/// [`Error`]; it is rolled up later, and until then read from the ledger.
pub async fn roll_up(cx: &Ctx, due: DueRollUp) -> Result<Changed, Error> {
    if due.needs_snapshot {
        let Some(mut books) = cx.store.lock_books(due.tenant_id).await? else { return Ok(Changed::Lost) };
        books.snapshot().await?;
        books.commit().await?;
    }
    let mut changed = Changed::Lost;
    while let Some(more) = cx.store.roll_up_usage(due.tenant_id).await? {
        changed = Changed::Yes;
        if !more {
            break;
        }
    }
    Ok(changed)
}
