//! Tenants: made, looked at, suspended, resumed and put on plans by operators.
//!
//! These need the database alone, so that an operator can act while everything else is down. The API
//! remembers callers for 2 s: within that a change is in force everywhere.

use chrono::{DateTime, Utc};
use serde_json::json;

use super::{
    Ctx, Error,
    list::{self, Page},
    operator::{Operator, Refused, judged, wrong},
    plans,
};
use crate::{
    domain::{
        id::{KeyId, TenantId},
        idempotency::{IdempotencyKey, PayloadHash},
    },
    store::{self, Balance, KeyRecord, Store, TenantRecord},
};

/// The plan of a tenant for whom none is named.
pub const PLAN_DEFAULT: &str = "starter";
const NAME_CHARS_MAX: usize = 200;
/// How often a tenant is put on a plan anew because somebody else did so at the same time.
const ASSIGNMENTS_MAX: usize = 3;

/// A tenant that was made.
#[derive(Debug)]
pub enum Created {
    /// Now.
    New(TenantRecord),
    /// By the same request before; this is the tenant as it is now.
    Replayed(TenantRecord),
}

/// Makes a tenant; with a key, once for each key.
///
/// # Errors
/// [`Refused`]; after one that [`Refused::Failed`] the same key tells what became of it.
pub async fn create(
    store: &Store,
    by: Operator,
    name: &str,
    plan: &str,
    once: Option<&IdempotencyKey>,
) -> Result<Created, Refused> {
    let sound = (1..=NAME_CHARS_MAX).contains(&name.chars().count());
    let sound = sound && !name.trim().is_empty() && !name.contains('\0');
    let right = format!("must be 1 to {NAME_CHARS_MAX} characters, not all of them blank");
    judged((!sound).then(|| wrong("/name", right)))?;
    let payload = PayloadHash::of(&json!({ "name": name, "plan": plan }));
    if let Some(key) = once
        && let Some(tenant) = made_before(store, key, payload).await?
    {
        return Ok(Created::Replayed(tenant));
    }
    plan_exists(store, plan).await?;
    let made = match once {
        Some(key) => store.create_tenant_once(name, plan, key, payload).await,
        None => store.create_tenant(name, plan).await,
    };
    let tenant = match (made, once) {
        // The same request, at the same time.
        (Err(store::Error::Refused(constraint)), Some(key)) if constraint == "tenant_creations_pkey" => {
            let tenant = made_before(store, key, payload).await?;
            return tenant.map(Created::Replayed).ok_or(Refused::KeyReused);
        }
        (made, _) => made?,
    };
    tracing::info!(admin = by.door(), trace_id = by.trace_id(), tenant_id = %tenant.tenant_id, plan, "tenant created");
    Ok(Created::New(tenant))
}

async fn made_before(
    store: &Store,
    key: &IdempotencyKey,
    payload: PayloadHash,
) -> Result<Option<TenantRecord>, Refused> {
    match store.find_creation(key).await? {
        None => Ok(None),
        Some((_, before)) if before != payload => Err(Refused::KeyReused),
        Some((tenant_id, _)) => Ok(Some(found(store, tenant_id).await?)),
    }
}

/// A tenant and what its ledger says.
///
/// # Errors
/// [`Refused`]
pub async fn find(store: &Store, tenant_id: TenantId) -> Result<(TenantRecord, Balance), Refused> {
    Ok((found(store, tenant_id).await?, store.balance(tenant_id).await?))
}

async fn found(store: &Store, tenant_id: TenantId) -> Result<TenantRecord, Refused> {
    store.find_tenant(tenant_id).await?.ok_or(Refused::NoTenant)
}

/// A page of all tenants, the newest first.
///
/// # Errors
/// [`Error`]
pub async fn list(store: &Store, after: Option<TenantId>, limit: u16) -> Result<Page<TenantRecord>, Error> {
    Ok(Page::cut(store.list_tenants(after, i64::from(limit) + 1).await?, limit))
}

/// A page of a tenant's keys.
///
/// # Errors
/// [`Refused`]
pub async fn keys(
    cx: &Ctx,
    tenant_id: TenantId,
    after: Option<(DateTime<Utc>, KeyId)>,
    limit: u16,
) -> Result<Page<KeyRecord>, Refused> {
    found(&cx.store, tenant_id).await?;
    Ok(list::keys(cx, tenant_id, after, limit).await?)
}

/// Suspends or resumes a tenant; a second time changes nothing.
///
/// # Errors
/// [`Refused`]
pub async fn set_suspended(
    store: &Store,
    by: Operator,
    tenant_id: TenantId,
    suspended: bool,
) -> Result<TenantRecord, Refused> {
    let status = if suspended { "SUSPENDED" } else { "ACTIVE" };
    let tenant = found(store, tenant_id).await?;
    if tenant.status == status {
        return Ok(tenant);
    }
    store.set_suspended(tenant_id, suspended).await?;
    tracing::info!(admin = by.door(), trace_id = by.trace_id(), %tenant_id, status, "tenant's status set");
    Ok(TenantRecord { status: status.to_owned(), ..tenant })
}

/// Puts a tenant on a plan; a second time changes nothing.
///
/// # Errors
/// [`Refused`]
pub async fn assign_plan(
    store: &Store,
    by: Operator,
    tenant_id: TenantId,
    plan: &str,
) -> Result<TenantRecord, Refused> {
    for _ in 0..ASSIGNMENTS_MAX {
        let tenant = found(store, tenant_id).await?;
        if tenant.plan == plan {
            return Ok(tenant);
        }
        plan_exists(store, plan).await?;
        match store.assign_plan(tenant_id, plan).await {
            // Somebody else was faster; what they have made of it is replaced all the same.
            Err(store::Error::Refused(constraint))
                if ["tenant_plans_tenant_id_active_key", "tenant_plans_pkey"]
                    .contains(&constraint.as_str()) => {}
            assigned => {
                assigned?;
                tracing::info!(admin = by.door(), trace_id = by.trace_id(), %tenant_id, plan, before = tenant.plan,
                    "plan assigned");
                return Ok(TenantRecord { plan: plan.to_owned(), ..tenant });
            }
        }
    }
    let busy = anyhow::anyhow!("tenant {tenant_id} is being put on plans over and over");
    Err(Error::Store(store::Error::Unavailable(busy)).into())
}

/// Plans are never deleted, so one that is there stays.
async fn plan_exists(store: &Store, plan: &str) -> Result<(), Refused> {
    if plans::find(store, plan).await?.is_some() { Ok(()) } else { Err(Refused::NoPlan(plan.to_owned())) }
}
