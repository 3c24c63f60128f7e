//! Rebuild: sets a tenant's budget at the gate to what the ledger says, under a new epoch.
//!
//! Exclusive lock → raise the epoch → sum the ledger → set Redis → commit. Nothing of the tenant
//! commits in between, so no hold slips between the sum and the set; a hold that was admitted before
//! finds its epoch ended. If the commit fails, Redis is an epoch ahead, every insert is refused, and
//! the next submit rebuilds.

use super::{Ctx, Error, crash::CrashPoint};
use crate::{
    budget::{Hold, Rebuilt},
    domain::id::TenantId,
    store::{Balance, LockedBooks},
};

/// Rebuilds a budget unless Redis knows it under the current epoch and in this month: of many that find it missing, one
/// does the work.
///
/// # Errors
/// [`Error`]
pub async fn if_stale(cx: &Ctx, tenant_id: TenantId) -> Result<(), Error> {
    let Some(mut books) = cx.store.lock_books(tenant_id).await? else { return Ok(()) };
    let known = cx.budget.inspect(tenant_id).await?.budget.filter(|budget| budget.epoch == books.epoch());
    let month = books.month().await?.month;
    if known.and_then(|budget| budget.base).is_some_and(|(of, _)| of >= month) {
        return Ok(books.commit().await?);
    }
    under_lock(cx, tenant_id, books).await.map(drop)
}

/// Rebuilds a budget unless `epoch`, under which a submit was admitted that came to nothing, is over: its
/// reservation may be shared with a copy of the submit, so it is not simply let go, but dropped and forbidden to be
/// inserted in one. Of many such submits, one does the work.
///
/// # Errors
/// [`Error`]
pub async fn end_epoch(cx: &Ctx, tenant_id: TenantId, epoch: i64) -> Result<(), Error> {
    if cx.store.epoch(tenant_id).await? != Some(epoch) {
        return Ok(());
    }
    let Some(books) = cx.store.lock_books(tenant_id).await? else { return Ok(()) };
    if books.epoch() != epoch {
        return Ok(books.commit().await?);
    }
    under_lock(cx, tenant_id, books).await.map(drop)
}

/// Rebuilds a budget.
///
/// # Errors
/// [`Error`]
pub async fn rebuild(cx: &Ctx, tenant_id: TenantId) -> Result<(), Error> {
    let Some(books) = cx.store.lock_books(tenant_id).await? else { return Ok(()) };
    under_lock(cx, tenant_id, books).await.map(drop)
}

/// The same, with the lock in hand and perhaps a deposit made under it. Lets go of the lock.
pub(super) async fn under_lock(
    cx: &Ctx,
    tenant_id: TenantId,
    mut books: LockedBooks,
) -> Result<Balance, Error> {
    let epoch = cx.crash.at(CrashPoint::RebuildRaise, books.raise_epoch()).await?;
    let balance = books.balance().await?;
    let month = books.month().await?;
    let open = books.open_holds().await?;
    let holds: Vec<_> = open
        .iter()
        .map(|hold| Hold {
            run_id: hold.run_id,
            amount: hold.amount,
            key_fingerprint: &hold.key_fingerprint,
            payload: hold.payload,
        })
        .collect();
    let set = cx.budget.rebuild(tenant_id, epoch, balance.available, (month.month, month.base), &holds);
    if let Rebuilt::Older { epoch } = cx.crash.at(CrashPoint::RebuildSet, set).await? {
        // Only a database that was set back meets a gate from its own future.
        tracing::error!(%tenant_id, epoch, "Redis holds a younger budget than the database knows; advancing");
        cx.store.advance_epochs(epoch).await?;
        return Err(Error::BudgetBusy);
    }
    cx.crash.at(CrashPoint::RebuildCommit, books.commit()).await?;
    metrics::counter!("dpp_budget_rebuilds_total").increment(1);
    tracing::info!(%tenant_id, epoch, available_usd_micros = balance.available.get(), holds = holds.len(),
        "budget rebuilt from the ledger");
    Ok(balance)
}
