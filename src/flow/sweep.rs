//! Sweep: holds the gate's reservations against the runs.
//!
//! A reservation whose run has ended is settled from the ledger. A reservation without a run, or a
//! run without a reservation, both older than the grace, means that a process died between the gate
//! and the database or that Redis lost something: the budget is rebuilt, which also ends the epoch
//! under which a paused process might still insert.

use std::collections::HashSet;

use super::{Changed, Ctx, Error, Tally, rebuild};
use crate::domain::id::TenantId;

/// Settles every reservation of a tenant whose run has ended. Returns how many.
///
/// # Errors
/// [`Error`]
pub async fn settle_ended(cx: &Ctx, tenant_id: TenantId) -> Result<u64, Error> {
    let holds = cx.budget.inspect(tenant_id).await?.holds;
    let runs: Vec<_> = holds.into_keys().collect();
    let ended = cx.store.ended(tenant_id, &runs).await?;
    for settled in &ended {
        cx.budget.settle(settled).await?;
        tracing::info!(trace_id = %settled.trace_id(), run_id = %settled.run_id(), %tenant_id,
            charge_usd_micros = settled.charge().get(), "reservation settled from the ledger");
    }
    Ok(ended.len().try_into().unwrap_or(u64::MAX))
}

/// Sweeps one tenant.
///
/// # Errors
/// [`Error`]
pub async fn sweep(cx: &Ctx, tenant_id: TenantId) -> Result<Tally, Error> {
    let mut tally = Tally::default();
    let seen = cx.budget.inspect(tenant_id).await?;
    // Read after the gate: whatever was open there and has ended since is in neither list below.
    let open = cx.store.open_runs(tenant_id, cx.pace.reservation_grace).await?;
    if open.is_empty() && seen.holds.is_empty() {
        return Ok(tally);
    }
    let settled = settle_ended(cx, tenant_id).await?;
    tally.add(Tally { found: settled, changed: settled, ..Tally::default() });

    // Redis knows nothing of this tenant: its next submit rebuilds it, and nothing is held back.
    if seen.budget.is_none() {
        return Ok(tally);
    }
    let reserved: HashSet<_> = seen.holds.keys().copied().collect();
    let old: Vec<_> = seen
        .holds
        .iter()
        .filter(|(_, hold)| hold.age >= cx.pace.reservation_grace)
        .map(|(run, _)| *run)
        .collect();
    let known: HashSet<_> = cx.store.known(&old).await?.into_iter().collect();
    let orphans = old.iter().filter(|run| !known.contains(run)).count();
    let unreserved = open.iter().filter(|(run, settled_in)| *settled_in && !reserved.contains(run)).count();
    if orphans + unreserved > 0 {
        tracing::warn!(%tenant_id, orphans, unreserved, "the gate and the runs differ; rebuilding the budget");
        let outcome = rebuild::rebuild(cx, tenant_id).await.map(|()| Changed::Yes);
        tally.count(&outcome);
        outcome?;
    }
    Ok(tally)
}
