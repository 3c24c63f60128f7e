//! Retain: past its retention, a run's objects go first and its inputs after. What it was, cost and
//! came to stays in the books.

use super::{Changed, Ctx, Error, crash::CrashPoint};
use crate::store::DuePurge;

/// Purges one run.
///
/// # Errors
/// [`Error`]; it is purged later.
pub async fn purge(cx: &Ctx, due: &DuePurge) -> Result<Changed, Error> {
    cx.crash.at(CrashPoint::RetainPurge, cx.results.purge(due.tenant_id, due.run_id)).await?;
    if !cx.crash.at(CrashPoint::RetainMark, cx.store.mark_purged(due.run_id)).await? {
        return Ok(Changed::Lost);
    }
    tracing::info!(trace_id = %due.trace_id, run_id = %due.run_id, tenant_id = %due.tenant_id, "run purged");
    Ok(Changed::Yes)
}
