//! Deposit: a ledger entry, once for each reference, and a rebuilt budget.

use super::{Ctx, Error, crash::CrashPoint};
use crate::{
    domain::{id::TenantId, money::UsdMicros},
    store::Deposit,
};

/// Deposits `amount`. `None` for no such tenant.
///
/// The ledger decides. If Redis is down the deposit stands all the same, under a raised epoch, so the
/// gate's old figure admits nothing any more; the next submit that it would refuse, or the sweep,
/// rebuilds it.
///
/// # Errors
/// [`Error`]; on one that passes, try again with the same reference.
pub async fn deposit(
    cx: &Ctx,
    tenant_id: TenantId,
    amount: UsdMicros,
    reference: &str,
) -> Result<Option<Deposit>, Error> {
    let Some(mut books) = cx.store.lock_books(tenant_id).await? else { return Ok(None) };
    let outcome = cx.crash.at(CrashPoint::DepositPost, books.deposit(amount, reference)).await?;
    match outcome {
        Deposit::Posted => {
            books.raise_epoch().await?;
            cx.crash.at(CrashPoint::DepositCommit, books.commit()).await?;
            tracing::info!(%tenant_id, amount_usd_micros = amount.get(), reference, "deposited");
        }
        // Whoever posted it may have died before the gate knew.
        Deposit::Already => drop(books),
        Deposit::ReferenceReused { .. } | Deposit::AboveMaximum { .. } => return Ok(Some(outcome)),
    }
    if let Err(error) = super::rebuild::if_stale(cx, tenant_id).await {
        tracing::warn!(%tenant_id, error = format!("{:#}", anyhow::Error::from(error)),
            "the gate does not know of the deposit yet; the next submit tells it");
    }
    Ok(Some(outcome))
}
