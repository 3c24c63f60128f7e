//! Keys: a tenant's own, managed with one of them, or by operators. Nobody hands out more than they have.

use std::time::Duration;

use super::{
    Ctx, Error,
    operator::{Operator, Refused, judged, wrong},
};
use crate::{
    domain::{
        api_key::{ApiKey, KeyDigest},
        id::{KeyId, TenantId},
        plan::Caller,
    },
    store::{self, KeyRecord, NewKey, NewLimits, Store},
};

const LABEL_CHARS_MAX: usize = 200;
/// How long a rotated key works on unless its owner says.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(24 * 3_600);
/// The longest that it may.
pub const GRACE_MAX: Duration = Duration::from_secs(30 * 24 * 3_600);

/// What became of a wish for a key.
#[derive(Debug)]
pub enum Made {
    /// Here it is, and its secret, this one time.
    Key(Box<KeyRecord>, ApiKey),
    /// It would do more, or last longer, than the key that asks.
    BeyondCaller,
    /// It would have ended before it began.
    Ended,
    /// There is no such key, or it no longer works, or it has a successor already.
    Absent,
    /// The key that asks does not work any more.
    CallerGone,
}

/// Whose key this is, if it opens anything now, and whether [`touch`] is due.
///
/// # Errors
/// [`Error`]
pub async fn caller(cx: &Ctx, digest: KeyDigest) -> Result<Option<(Caller, bool)>, Error> {
    Ok(cx.store.find_caller(digest).await?)
}

/// Writes down that a key is in use. Where that fails nobody is kept from anything.
pub async fn touch(cx: &Ctx, key_id: KeyId) {
    if let Err(error) = cx.store.touch_key(key_id).await {
        tracing::debug!(%key_id, error = format!("{:#}", anyhow::Error::from(error)), "a key's use was not noted");
    }
}

/// Whether this can be a key's label.
pub fn is_label(text: &str) -> bool {
    text.chars().count() <= LABEL_CHARS_MAX && !text.contains('\0')
}

/// What a label must be.
pub fn label_rule() -> String {
    format!("must be a text of at most {LABEL_CHARS_MAX} characters")
}

/// What a grace must be.
pub fn grace_rule() -> String {
    format!("must be a whole number of seconds from 0 to {}", GRACE_MAX.as_secs())
}

/// Makes a key for an operator, who may hand out every right.
///
/// # Errors
/// [`Refused`]; on one that passes there may be a key that nobody knows the secret of.
pub async fn create_by_operator(store: &Store, by: Operator, key: NewKey) -> Result<Made, Refused> {
    judged((!is_label(&key.label)).then(|| wrong("/label", label_rule())))?;
    let secret = ApiKey::generate();
    let made = match store.create_limited_key(&key, None, secret.digest()).await {
        Err(store::Error::Refused(constraint)) if constraint == "api_keys_tenant_id_fkey" => {
            return Err(Refused::NoTenant);
        }
        made => made?,
    };
    Ok(made.map_or(Made::Ended, |record| noted_operator("key created", by, record, secret)))
}

/// Makes a successor of any tenant's key for an operator; the key works for `grace` more.
///
/// # Errors
/// [`Refused`]; on one that passes there may be a successor that nobody knows the secret of: it can be rotated.
pub async fn rotate_by_operator(
    store: &Store,
    by: Operator,
    key_id: KeyId,
    grace: Duration,
) -> Result<Made, Refused> {
    judged((grace > GRACE_MAX).then(|| wrong("/grace_sec", grace_rule())))?;
    let secret = ApiKey::generate();
    let made = store.rotate_key(key_id, None, grace, secret.digest()).await?;
    Ok(made.map_or(Made::Absent, |record| noted_operator("key rotated", by, record, secret)))
}

/// Revokes any tenant's key for an operator; a second time changes nothing. `None` for no such key.
///
/// # Errors
/// [`Error`]
pub async fn revoke_by_operator(
    store: &Store,
    by: Operator,
    key_id: KeyId,
) -> Result<Option<KeyRecord>, Error> {
    let revoked = store.revoke_key(key_id).await?;
    if let Some(KeyRecord { tenant_id, .. }) = &revoked {
        tracing::info!(admin = by.door(), trace_id = by.trace_id(), %tenant_id, %key_id, "key revoked");
    }
    Ok(revoked)
}

/// Makes a key.
///
/// # Errors
/// [`Error`]; on one that passes there may be a key that nobody knows the secret of.
pub async fn create(cx: &Ctx, caller: &Caller, key: NewKey) -> Result<Made, Error> {
    if !within(caller, &key) {
        return Ok(Made::BeyondCaller);
    }
    let secret = ApiKey::generate();
    let made = cx.store.create_limited_key(&key, Some(caller.key_id), secret.digest()).await?;
    match made {
        Some(record) => Ok(noted("key created", caller, record, secret)),
        None => refused(cx, caller, Made::Ended).await,
    }
}

/// Makes a successor of a key, which works for `grace` more.
///
/// # Errors
/// [`Error`]; on one that passes there may be a successor that nobody knows the secret of: it can be rotated.
pub async fn rotate(cx: &Ctx, caller: &Caller, key_id: KeyId, grace: Duration) -> Result<Made, Error> {
    let Some(old) = cx.store.find_key(caller.tenant_id, key_id).await? else { return Ok(Made::Absent) };
    if old.rotated_at.is_some() {
        return Ok(Made::Absent);
    }
    let successor = NewKey {
        tenant_id: old.tenant_id,
        label: old.label,
        scopes: old.scopes,
        expires_at: old.expires_at,
        limits: old.limits.map_or(NewLimits::Unlimited, NewLimits::Shared),
    };
    if !within(caller, &successor) {
        return Ok(Made::BeyondCaller);
    }
    let secret = ApiKey::generate();
    let made = cx.store.rotate_key(key_id, Some(caller.key_id), grace, secret.digest()).await?;
    match made {
        Some(record) => Ok(noted("key rotated", caller, record, secret)),
        None => refused(cx, caller, Made::Absent).await,
    }
}

/// Revokes a key; a second time changes nothing. `false` for no such key.
///
/// # Errors
/// [`Error`]
pub async fn revoke(cx: &Ctx, caller: &Caller, key_id: KeyId) -> Result<bool, Error> {
    let tenant_id: TenantId = caller.tenant_id;
    if cx.store.find_key(tenant_id, key_id).await?.is_none() {
        return Ok(false);
    }
    let revoked = cx.store.revoke_key(key_id).await?.is_some();
    tracing::info!(%tenant_id, %key_id, by = %caller.key_id, "key revoked");
    Ok(revoked)
}

/// Why the database made no key: a caller is remembered for a moment, and may have been revoked meanwhile.
async fn refused(cx: &Ctx, caller: &Caller, else_why: Made) -> Result<Made, Error> {
    let now = cx.store.now().await?;
    let works = cx
        .store
        .find_key(caller.tenant_id, caller.key_id)
        .await?
        .is_some_and(|key| key.revoked_at.is_none() && key.expires_at.is_none_or(|end| end > now));
    Ok(if works { else_why } else { Made::CallerGone })
}

/// Whether a key may do no more, and lasts no longer, than the key that asks for it, and shares its limits.
fn within(caller: &Caller, key: &NewKey) -> bool {
    let lasts = match (caller.key_expires_at, key.expires_at) {
        (None, _) => true,
        (Some(callers), Some(keys)) => keys <= callers,
        (Some(_), None) => false,
    };
    let limited = match (&caller.key_limits, &key.limits) {
        (None, _) => true,
        (Some(callers), NewLimits::Shared(keys)) => callers.root == keys.root,
        (Some(_), NewLimits::Unlimited | NewLimits::Own { .. }) => false,
    };
    lasts && limited && caller.scopes.cover(&key.scopes)
}

fn noted_operator(what: &'static str, by: Operator, record: KeyRecord, secret: ApiKey) -> Made {
    tracing::info!(admin = by.door(), trace_id = by.trace_id(), tenant_id = %record.tenant_id,
        key_id = %record.key_id, "{what}");
    Made::Key(Box::new(record), secret)
}

fn noted(what: &'static str, caller: &Caller, record: KeyRecord, secret: ApiKey) -> Made {
    tracing::info!(tenant_id = %record.tenant_id, key_id = %record.key_id, by = %caller.key_id, what);
    Made::Key(Box::new(record), secret)
}
