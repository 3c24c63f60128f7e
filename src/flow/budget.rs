//! Budget: what a tenant has, what its month has cost, and what a limited key has spent.

use super::{Ctx, Error};
use crate::{
    domain::{
        id::{KeyId, TenantId},
        money::UsdMicros,
    },
    store::{Balance, MonthBooks},
};

/// What a tenant sees of its money.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    /// All of it.
    pub balance: Balance,
    /// This month.
    pub month: MonthBooks,
    /// What the runs of a limited key's family have cost and hold.
    pub key_spent: Option<UsdMicros>,
}

/// Reads a tenant's budget, and what was spent by the family of `root`.
///
/// # Errors
/// [`Error`]
pub async fn read(cx: &Ctx, tenant_id: TenantId, root: Option<KeyId>) -> Result<Read, Error> {
    let key_spent = match root {
        Some(root) => Some(cx.store.key_spent(root).await?),
        None => None,
    };
    Ok(Read {
        balance: cx.store.balance(tenant_id).await?,
        month: cx.store.month(tenant_id).await?,
        key_spent,
    })
}
