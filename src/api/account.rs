//! `/v1/budget`, `/v1/usage`, `/v1/ledger`: what a tenant has, and what it has spent.

use std::collections::BTreeMap;

use actix_web::{HttpRequest, HttpResponse, web::Data};

use super::{
    App,
    context::ids,
    extract::{Caller, UsageRead},
    page::List,
    problem::{Kind, Problem},
    query::{Query, wrong},
    shape,
};
use crate::{
    domain::money::UsdMicros,
    flow::{
        self, budget, list,
        usage::{self, BadRange, DAYS_MAX, Usage},
    },
    store::UsageRow,
};

/// `GET /v1/budget`
pub async fn budget(
    app: Data<App>,
    request: HttpRequest,
    caller: Caller<UsageRead>,
) -> Result<HttpResponse, Problem> {
    Query::none(&request)?;
    let trace_id = ids(&request).trace_id;
    let (cx, caller) = (app.cx.clone(), caller.0);
    let (tenant_id, limits) = (caller.tenant_id, caller.key_limits);
    let root = limits.as_ref().map(|limits| limits.root);
    let read = app.detached.run(async move { budget::read(&cx, tenant_id, root).await }).await;
    let read =
        read.map_err(flow::Error::from).flatten().map_err(|error| Problem::of_flow(error, trace_id))?;
    Ok(HttpResponse::Ok().json(shape::Budget {
        tenant_id: tenant_id.0,
        deposited_usd: read.balance.deposited.into(),
        available_usd: read.balance.available.into(),
        held_usd: read.balance.held.into(),
        charged_usd: read.balance.charged.into(),
        charged_this_month_usd: read.month.charged.into(),
        plan: caller.plan.into(),
        key: shape::KeyLimits::of(limits.as_ref(), read.key_spent),
    }))
}

/// `GET /v1/usage`
pub async fn usage(
    app: Data<App>,
    request: HttpRequest,
    caller: Caller<UsageRead>,
) -> Result<HttpResponse, Problem> {
    let trace_id = ids(&request).trace_id;
    let mut query = Query::of(&request, &["start_date", "end_date"]);
    let (first, last) = (query.day("start_date"), query.day("end_date"));
    query.end()?;
    let (cx, tenant_id) = (app.cx.clone(), caller.0.tenant_id);
    let usage = app.detached.run(async move { usage::read(&cx, tenant_id, first, last).await }).await;
    let usage =
        usage.map_err(flow::Error::from).flatten().map_err(|error| Problem::of_flow(error, trace_id))?;
    match usage {
        Ok(usage) => {
            let body = usage_shape(&usage).ok_or_else(|| {
                tracing::error!(%trace_id, %tenant_id, "usage above the largest amount");
                Problem::new(Kind::Internal, "The request could not be completed.")
            })?;
            Ok(HttpResponse::Ok().json(body))
        }
        Err(BadRange::Backwards) => Err(wrong("start_date", "must not be after end_date")),
        Err(BadRange::TooLong) => {
            Err(wrong("end_date", &format!("must be within {DAYS_MAX} days, start_date included")))
        }
    }
}

/// `GET /v1/ledger`
pub async fn ledger(
    app: Data<App>,
    request: HttpRequest,
    caller: Caller<UsageRead>,
) -> Result<HttpResponse, Problem> {
    let trace_id = ids(&request).trace_id;
    let tenant_id = caller.0.tenant_id;
    let query = Query::of(&request, &["limit", "cursor"]);
    let list = List::of(&app, &request, tenant_id, query, "ledger", ()).await?;
    let after = list.after(|place| Some(i64::from_be_bytes(place.try_into().ok()?)))?;
    let (cx, limit) = (app.cx.clone(), list.limit);
    let page = app.detached.run(async move { list::statement(&cx, tenant_id, after, limit).await }).await;
    let page =
        page.map_err(flow::Error::from).flatten().map_err(|error| Problem::of_flow(error, trace_id))?;
    let next = page.rows.last().filter(|_| page.more).map(|entry| entry.transfer_id.to_be_bytes());
    let data = page.rows.iter().map(shape::Entry::from).collect();
    Ok(list.answer(&app, &request, data, next.as_ref().map(<[u8; 8]>::as_slice)))
}

/// Runs and their charges, summed.
#[derive(Clone, Copy, Default)]
struct Sum {
    runs: u64,
    charged: UsdMicros,
}

impl Sum {
    /// `None` above the largest amount: more than any tenant's books can hold.
    fn add(self, row: &UsageRow) -> Option<Self> {
        let runs = self.runs.checked_add(row.runs)?;
        Some(Self { runs, charged: self.charged.checked_add(row.charged)? })
    }

    fn shape(self) -> shape::Sum {
        shape::Sum { runs: self.runs, charged_usd: self.charged.into() }
    }
}

fn usage_shape(usage: &Usage) -> Option<shape::Usage> {
    let mut total = Sum::default();
    let mut packs = BTreeMap::<_, Sum>::new();
    let mut days = BTreeMap::<_, (Sum, Vec<shape::PackUsage>)>::new();
    let pack_usage = |pack: &String, sum: Sum| shape::PackUsage { pack_type: pack.clone(), sum: sum.shape() };
    for row in &usage.rows {
        total = total.add(row)?;
        let pack = packs.entry(&row.pack_type).or_default();
        *pack = pack.add(row)?;
        let (sum, of_packs) = days.entry(row.date).or_default();
        *sum = sum.add(row)?;
        of_packs.push(pack_usage(&row.pack_type, Sum::default().add(row)?));
    }
    let day_usage = |(date, (sum, packs)): (_, (Sum, _))| shape::DayUsage { date, sum: sum.shape(), packs };
    Some(shape::Usage {
        start_date: usage.first,
        end_date: usage.last,
        total: total.shape(),
        packs: packs.into_iter().map(|(pack, sum)| pack_usage(pack, sum)).collect(),
        days: days.into_iter().map(day_usage).collect(),
    })
}
