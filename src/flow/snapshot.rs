//! Snapshot: sums a tenant's ledger up, so that reading it does not grow with history.
//!
//! Under the tenant's exclusive lock, so that no transfer with a smaller id is still uncommitted.

use super::{Changed, Ctx, Error, crash::CrashPoint};
use crate::domain::id::TenantId;

/// Takes a snapshot of one tenant's ledger as it is now.
///
/// # Errors
/// [`Error`]; it is taken later.
pub async fn snapshot(cx: &Ctx, tenant_id: TenantId) -> Result<Changed, Error> {
    let Some(mut books) = cx.store.lock_books(tenant_id).await? else { return Ok(Changed::Lost) };
    cx.crash.at(CrashPoint::SnapshotWrite, books.snapshot()).await?;
    cx.crash.at(CrashPoint::SnapshotCommit, books.commit()).await?;
    Ok(Changed::Yes)
}
