//! Sweep: holds the gate against the books.
//!
//! A reservation whose run has ended is settled from the ledger. Whatever else differs means that a
//! process died between the gate and the database, or that Redis lost or kept something that it should
//! not: then the budget is rebuilt, which also ends the epoch under which a paused process might still
//! insert.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use super::{Changed, Ctx, Error, Tally, crash::CrashPoint, rebuild};
use crate::{
    budget::Inspection,
    domain::{
        id::{RunId, TenantId},
        run::Settled,
    },
};

/// A reservation this old without a run will never have one: longer than any statement may take.
const ABANDONED_AFTER: Duration = Duration::from_secs(12);
/// How long a refusal waits for submits under way to come to something, and how often it looks.
const CATCH_UP_MAX: Duration = Duration::from_millis(1_000);
const CATCH_UP_EVERY: Duration = Duration::from_millis(25);
/// How often a gate that differs is looked at again before the tenant's lock is taken.
const UNLOCKED_LOOKS: u32 = 5;

/// What the gate knew that the ledger did not, or the reverse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaughtUp {
    /// Nothing: the refusal is exact, by these figures.
    Exact(Figures),
    /// Something; ask the gate again.
    Changed,
    /// Submits are under way whose outcome decides.
    Undecided,
}

/// What a refusal is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// What a new run can reserve, in micros.
    pub available_usd_micros: i64,
    /// How many runs are open.
    pub open_runs: usize,
}

/// Before a submit is refused by figures that may be behind: lets the gate catch up with everything that has
/// ended, and waits a moment for whatever is under way. `refused` says whether figures refuse it: it is refused
/// by those that there would be if all that is under way came to nothing.
///
/// # Errors
/// [`Error`]
pub async fn catch_up(
    cx: &Ctx,
    tenant_id: TenantId,
    refused: impl Fn(Figures) -> bool,
) -> Result<CaughtUp, Error> {
    let patience = tokio::time::Instant::now() + CATCH_UP_MAX;
    loop {
        let seen = cx.budget.inspect(tenant_id).await?;
        let Some(budget) = seen.budget else { return Ok(CaughtUp::Changed) };
        if cx.store.epoch(tenant_id).await? != Some(budget.epoch) {
            rebuild::if_stale(cx, tenant_id).await?;
            return Ok(CaughtUp::Changed);
        }
        // One look at the books, so that what it calls open is open at one instant.
        let known = outcomes(cx, tenant_id, &seen).await?;
        if settle(cx, known.values().flatten()).await? > 0 {
            return Ok(CaughtUp::Changed);
        }
        let pending: Vec<_> = seen.holds.iter().filter(|(run, _)| !known.contains_key(run)).collect();
        let pending_usd_micros: i64 = pending.iter().map(|(_, hold)| hold.amount_usd_micros).sum();
        let at_best = Figures {
            available_usd_micros: budget.available_usd_micros.saturating_add(pending_usd_micros),
            open_runs: known.len(),
        };
        if refused(at_best) {
            return Ok(CaughtUp::Exact(at_best));
        }
        let now = Figures { available_usd_micros: budget.available_usd_micros, open_runs: seen.holds.len() };
        if !refused(now) {
            return Ok(CaughtUp::Changed);
        }
        if pending.iter().any(|(_, hold)| hold.age >= ABANDONED_AFTER) {
            rebuild::rebuild(cx, tenant_id).await?;
            return Ok(CaughtUp::Changed);
        }
        if tokio::time::Instant::now() >= patience {
            return Ok(CaughtUp::Undecided);
        }
        tokio::time::sleep(CATCH_UP_EVERY).await;
    }
}

/// The runs of the reservations seen, each with the ledger's word on it if it has ended.
async fn outcomes(
    cx: &Ctx,
    tenant_id: TenantId,
    seen: &Inspection,
) -> Result<HashMap<RunId, Option<Settled>>, Error> {
    let runs: Vec<_> = seen.holds.keys().copied().collect();
    Ok(cx.store.outcomes(tenant_id, &runs).await?.into_iter().collect())
}

/// Settles reservations whose runs have ended. Returns how many.
async fn settle(cx: &Ctx, ended: impl Iterator<Item = &Settled>) -> Result<u64, Error> {
    let mut count = 0;
    for settled in ended {
        cx.crash.at(CrashPoint::SweepSettle, cx.budget.settle(settled)).await?;
        tracing::info!(trace_id = %settled.trace_id(), run_id = %settled.run_id(), tenant_id = %settled.tenant_id(),
            charge_usd_micros = settled.charge().get(), "reservation settled from the ledger");
        count += 1;
    }
    Ok(count)
}

/// By how many micros the gate's total (available and held) differs from what the ledger calls for, whose own
/// total is `ledger_usd_micros`.
///
/// A reservation moves an amount within the total, and a settlement takes its charge off; so the total
/// is what the ledger has available and held, plus the charges of runs that have ended there and not
/// yet here. That holds at any instant at which the ledger does not move.
pub(super) async fn drift(
    cx: &Ctx,
    tenant_id: TenantId,
    seen: &Inspection,
    ledger_usd_micros: i64,
) -> Result<i64, Error> {
    let Some(budget) = seen.budget else { return Ok(0) };
    let known = outcomes(cx, tenant_id, seen).await?;
    let unsettled: i64 = known.values().flatten().map(|settled| settled.charge().get()).sum();
    let holds: i64 = seen.holds.values().map(|hold| hold.amount_usd_micros).sum();
    Ok(budget.available_usd_micros + holds - ledger_usd_micros - unsettled)
}

/// Sweeps one tenant.
///
/// # Errors
/// [`Error`]
pub async fn sweep(cx: &Ctx, tenant_id: TenantId) -> Result<Tally, Error> {
    let mut tally = Tally::default();
    let seen = cx.budget.inspect(tenant_id).await?;
    // Redis knows nothing of this tenant: its next submit rebuilds it, and nothing is held back.
    let Some(budget) = seen.budget else { return Ok(tally) };
    let settled = settle(cx, outcomes(cx, tenant_id, &seen).await?.values().flatten()).await?;
    tally.add(Tally { found: settled, changed: settled, ..Tally::default() });

    let Some(why) = difference(cx, tenant_id, budget.epoch, &seen).await? else { return Ok(tally) };
    tracing::warn!(%tenant_id, why, "the gate and the books differ; rebuilding the budget");
    let outcome = rebuild::rebuild(cx, tenant_id).await.map(|()| Changed::Yes);
    tally.count(&outcome);
    outcome?;
    Ok(tally)
}

/// What differs between the gate and the books that no submit or settlement under way explains.
async fn difference(
    cx: &Ctx,
    tenant_id: TenantId,
    epoch: i64,
    seen: &Inspection,
) -> Result<Option<&'static str>, Error> {
    if cx.store.epoch(tenant_id).await? != Some(epoch) {
        return Ok(Some("the gate is of another epoch"));
    }
    let old: Vec<_> = seen
        .holds
        .iter()
        .filter(|(_, hold)| hold.age >= cx.pace.reservation_grace)
        .map(|(run, _)| *run)
        .collect();
    let known: HashSet<_> = cx.store.known(&old).await?.into_iter().collect();
    if old.iter().any(|run| !known.contains(run)) {
        return Ok(Some("a reservation has no run"));
    }
    let open: HashMap<_, _> =
        cx.store.open_runs(tenant_id, cx.pace.reservation_grace).await?.into_iter().collect();
    if open.iter().any(|(run, settled_in)| *settled_in && !seen.holds.contains_key(run)) {
        return Ok(Some("an open run has no reservation"));
    }
    if !seems_off(cx, tenant_id, seen).await? {
        return Ok(None);
    }
    let Some(mut books) = cx.store.lock_books(tenant_id).await? else { return Ok(None) };
    let seen = cx.budget.inspect(tenant_id).await?;
    let balance = books.balance().await?;
    let drift = drift(cx, tenant_id, &seen, balance.available.get() + balance.held.get()).await?;
    Ok((drift != 0).then_some("the gate's total is not the ledger's"))
}

/// Whether the gate's total seems to be off, without the lock: whoever waits for it makes all of the tenant's
/// submits and ends wait behind. Between two equal readings of the books a look is exact; only on a tenant that
/// never stands still for one is what commits in between taken for a difference.
async fn seems_off(cx: &Ctx, tenant_id: TenantId, seen: &Inspection) -> Result<bool, Error> {
    let mut before = cx.store.balance(tenant_id).await?;
    if drift(cx, tenant_id, seen, before.available.get() + before.held.get()).await? == 0 {
        return Ok(false);
    }
    for _ in 0..UNLOCKED_LOOKS {
        let seen = cx.budget.inspect(tenant_id).await?;
        let drift = drift(cx, tenant_id, &seen, before.available.get() + before.held.get()).await?;
        let after = cx.store.balance(tenant_id).await?;
        if drift == 0 || after == before {
            return Ok(drift != 0);
        }
        before = after;
    }
    Ok(true)
}
