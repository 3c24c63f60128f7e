//! Deposit: a ledger entry, once for each reference, and a rebuilt budget.

use chrono::{DateTime, Utc};

use super::{
    Ctx, Error,
    crash::CrashPoint,
    operator::{Operator, Refused, judged, wrong},
};
use crate::{
    domain::{id::TenantId, money::UsdMicros},
    store::{self, Deposit},
};

const REFERENCE_CHARS_MAX: usize = 255;

/// A deposit in the books.
#[derive(Clone, Copy, Debug)]
pub struct Deposited {
    /// How much.
    pub amount: UsdMicros,
    /// When.
    pub at: DateTime<Utc>,
    /// Whether it was there before.
    pub replayed: bool,
}

/// Deposits `amount` for an operator, once for each reference.
///
/// # Errors
/// [`Refused`]; after one that [`Refused::Failed`] the same reference tells what became of it.
pub async fn by_operator(
    cx: &Ctx,
    by: Operator,
    tenant_id: TenantId,
    amount: UsdMicros,
    reference: &str,
) -> Result<Deposited, Refused> {
    let sound = (1..=REFERENCE_CHARS_MAX).contains(&reference.chars().count())
        && !reference.chars().any(char::is_control);
    let right = format!("must be 1 to {REFERENCE_CHARS_MAX} characters without control characters");
    judged(
        [
            amount.is_zero().then(|| wrong("/amount_usd", "must be above 0")),
            (!sound).then(|| wrong("/reference", right)),
        ]
        .into_iter()
        .flatten(),
    )?;
    let replayed = match post(cx, Some(by), tenant_id, amount, reference).await? {
        None => return Err(Refused::NoTenant),
        Some(Deposit::Posted) => false,
        Some(Deposit::Already) => true,
        Some(Deposit::ReferenceReused { amount }) => {
            return Err(Refused::ReferenceReused { reference: reference.to_owned(), amount });
        }
        Some(Deposit::AboveMaximum { deposited }) => return Err(Refused::AboveMaximum { deposited }),
    };
    let lost = || store::Error::Query(anyhow::anyhow!("a deposit that was posted is not there"));
    let (amount, at) = cx.store.find_deposit(tenant_id, reference).await?.ok_or_else(lost)?;
    Ok(Deposited { amount, at, replayed })
}

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
    post(cx, None, tenant_id, amount, reference).await
}

async fn post(
    cx: &Ctx,
    by: Option<Operator>,
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
            tracing::info!(admin = by.map(Operator::door), trace_id = by.and_then(Operator::trace_id), %tenant_id,
                amount_usd_micros = amount.get(), reference, "deposited");
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
