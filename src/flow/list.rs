//! List: pages of what a tenant has, newest first.

use chrono::{DateTime, Utc};

use super::{
    Ctx, Error,
    read::{self, Link},
};
use crate::{
    domain::{
        id::{KeyId, TenantId},
        run::Run,
    },
    store::{Entry, KeyRecord, RunFilter, RunPlace},
};

/// A page, and whether there is more behind it.
#[derive(Debug)]
pub struct Page<T> {
    /// Its rows.
    pub rows: Vec<T>,
    /// Whether another page follows.
    pub more: bool,
}

impl<T> Page<T> {
    /// Cuts what was asked for with one row to spare.
    pub(super) fn cut(mut rows: Vec<T>, limit: u16) -> Self {
        let more = rows.len() > usize::from(limit);
        rows.truncate(usize::from(limit));
        Self { rows, more }
    }
}

/// A page of runs, each with a link to its result where it has one.
///
/// # Errors
/// [`Error`]
pub async fn runs(
    cx: &Ctx,
    tenant_id: TenantId,
    filter: &RunFilter,
    after: Option<RunPlace>,
    limit: u16,
) -> Result<Page<(Run, Option<Link>)>, Error> {
    let page = Page::cut(cx.store.list_runs(tenant_id, filter, after, i64::from(limit) + 1).await?, limit);
    let mut rows = Vec::with_capacity(page.rows.len());
    for run in page.rows {
        // A signature, made here: no call to anybody.
        let link = read::link(cx, &run).await?;
        rows.push((run, link));
    }
    Ok(Page { rows, more: page.more })
}

/// A page of the tenant's keys.
///
/// # Errors
/// [`Error`]
pub async fn keys(
    cx: &Ctx,
    tenant_id: TenantId,
    after: Option<(DateTime<Utc>, KeyId)>,
    limit: u16,
) -> Result<Page<KeyRecord>, Error> {
    Ok(Page::cut(cx.store.list_keys(tenant_id, after, i64::from(limit) + 1).await?, limit))
}

/// A page of the tenant's ledger entries.
///
/// # Errors
/// [`Error`]
pub async fn statement(
    cx: &Ctx,
    tenant_id: TenantId,
    after: Option<i64>,
    limit: u16,
) -> Result<Page<Entry>, Error> {
    Ok(Page::cut(cx.store.statement(tenant_id, after, i64::from(limit) + 1).await?, limit))
}
