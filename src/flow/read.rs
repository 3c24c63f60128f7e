//! Read: a run, for its owner.

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};

use super::{Ctx, Error};
use crate::domain::{
    id::{RunId, TenantId},
    run::Run,
};

/// A run as its owner may see it.
#[derive(Debug)]
pub enum Found {
    /// As it is.
    Here(Box<Run>),
    /// Past its retention.
    Gone,
    /// Not there, or not theirs: nobody can tell which.
    Absent,
}

/// A download link.
#[derive(Clone, Debug)]
pub struct Link {
    /// The URL.
    pub url: String,
    /// Until when it works.
    pub expires_at: DateTime<Utc>,
}

/// Finds a tenant's run.
///
/// # Errors
/// [`Error`]
pub async fn find(cx: &Ctx, tenant_id: TenantId, run_id: RunId) -> Result<Found, Error> {
    let Some(run) = cx.store.find_owned(tenant_id, run_id).await? else { return Ok(Found::Absent) };
    // Only an ended run can be past its retention; the database's clock is asked for those alone.
    if run.is_terminal() && run.is_past_retention(cx.store.now().await?) {
        return Ok(Found::Gone);
    }
    Ok(Found::Here(Box::new(run)))
}

/// A link to a completed run's result, or `None`.
///
/// # Errors
/// [`Error`]
pub async fn link(cx: &Ctx, run: &Run) -> Result<Option<Link>, Error> {
    let Some(result) = run.result() else { return Ok(None) };
    let ttl = cx.pace.result_url_ttl;
    #[expect(
        clippy::disallowed_methods,
        reason = "the signature is made, and so ends, by this machine's clock"
    )]
    let expires_at = (Utc::now() + TimeDelta::from_std(ttl).unwrap_or(TimeDelta::zero())).trunc_subsecs(6);
    Ok(Some(Link { url: cx.results.presign(&result.key, ttl).await?, expires_at }))
}
