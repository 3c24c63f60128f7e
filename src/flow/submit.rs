//! Submit: gate (Redis) → run and hold (PostgreSQL, one statement) → message (SQS) → answer.

use std::time::Duration;

use serde_json::Value;

use super::{
    Ctx, Error,
    crash::CrashPoint,
    rebuild,
    sweep::{self, CaughtUp, Figures},
};
use crate::{
    budget::{Ask, Reserve},
    domain::{
        id::{RunId, TenantId, TraceId},
        idempotency::{IdempotencyKey, PayloadHash},
        limit::{GateLimits, Of, Quota},
        money::UsdMicros,
        plan::{Caller, PlanRefusal},
        price,
        run::{Run, RunState},
    },
    pack::{self, FieldError},
    store::{self, NewRun, Submitted},
    wire::message::{RunMessage, SchemaVersion},
};

/// How often a submit is admitted anew because its tenant's budget was rebuilt in between.
const ADMISSIONS_MAX: usize = 4;
/// How often the gate is asked anew because something changed since it refused.
const ASKS_MAX: usize = 16;

/// The constraint that refuses what a key may not spend.
const SPENT_CHECK: &str = "api_keys_spent_check";

/// How long an accepted submit waits for its message to be sent. A queue that is down costs its runs time,
/// not their buyers an answer.
const ANNOUNCE_MAX: Duration = Duration::from_millis(800);
/// How long to wait between attempts to read back a submit whose outcome is unknown.
const READ_BACK_PAUSES: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(400), Duration::from_millis(500)];

/// What a buyer asks for.
#[derive(Clone, Debug)]
pub struct Order {
    /// The pack.
    pub pack_type: String,
    /// What to do.
    pub inputs: Value,
    /// The most it may cost.
    pub max_cost: UsdMicros,
    /// How long it may take; `None` for the plan's default.
    pub timebox_secs: Option<i64>,
    /// The buyer's own notes.
    pub metadata: Value,
    /// The buyer's name for the submit.
    pub idempotency_key: IdempotencyKey,
    /// The request's hash.
    pub payload: PayloadHash,
    /// The trace.
    pub trace_id: TraceId,
}

/// An accepted submit.
#[derive(Debug)]
pub enum Accepted {
    /// The run is new. With it comes what is left of the limits of runs a minute.
    New(Run, Vec<Quota>),
    /// The same submit was accepted before; this is its run as it is now.
    Replayed(Run),
}

/// A submit that was refused. No money moved, and the key is unused, unless it is the key that was
/// refused.
#[derive(Debug)]
pub enum Refusal {
    /// The key named another payload before.
    KeyReused,
    /// The same submit was accepted before, and its run is past its retention.
    RunExpired,
    /// The tenant may not buy now.
    Suspended,
    /// No pack is sold under this name; these are.
    UnknownPack(Vec<&'static str>),
    /// This deployment cannot serve these inputs.
    PackUnavailable(String),
    /// The inputs are wrong.
    InvalidInputs(Vec<FieldError>),
    /// The plan says no.
    Plan(PlanRefusal),
    /// A limit of runs a minute is reached.
    RateLimited(Quota),
    /// As many runs are open as the plan allows.
    TooManyRuns {
        /// So many.
        max: i32,
    },
    /// What a month may cost, or the runs of a key, does not cover it.
    SpendLimit(SpendLimit),
    /// The budget does not cover it.
    BudgetExceeded {
        /// What is left.
        available: UsdMicros,
        /// What was asked for.
        requested: UsdMicros,
    },
}

/// A limit of what may be spent that does not cover a submit.
#[derive(Clone, Copy, Debug)]
pub struct SpendLimit {
    /// Whose: the tenant's is of a UTC month, the key's is for ever.
    pub of: Of,
    /// The most.
    pub max: UsdMicros,
    /// What has been charged and is held.
    pub spent: UsdMicros,
    /// What was asked for.
    pub requested: UsdMicros,
    /// When it may be otherwise, in seconds.
    pub retry_after_secs: u32,
}

/// When a submit may be tried again that waits for open runs to return what they hold, in seconds.
pub const OPEN_RUNS_RETRY_SECS: u32 = 1;
/// The same where only a run's end could help a key that may spend so much and no more.
const KEY_RETRY_SECS: u32 = 60;

/// Why a submit was not accepted.
#[derive(Debug)]
pub enum NotAccepted {
    /// It was refused.
    Refused(Refusal),
    /// Something is down. Nothing was charged; the same key may be tried again.
    Failed(Error),
}

impl<E: Into<Error>> From<E> for NotAccepted {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl From<Refusal> for NotAccepted {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Accepts a submit, once for each key.
///
/// # Errors
/// [`NotAccepted`]
pub async fn submit(cx: &Ctx, caller: &Caller, order: Order) -> Result<Accepted, NotAccepted> {
    // A replay is answered before anything that may have changed since: plan, prices, balance.
    if let Some(run) = cx.store.find_by_key(caller.tenant_id, &order.idempotency_key).await? {
        return replay(cx, run, &order).await;
    }
    let new = judge(cx, caller, order.clone())?;
    let mut admitted = false;
    match buy(cx, caller, &order, new, &mut admitted).await {
        // This may be a copy of a submit that was accepted since the look above and took what was left.
        Err(refused @ NotAccepted::Refused(_)) => {
            match cx.store.find_by_key(caller.tenant_id, &order.idempotency_key).await? {
                Some(run) => replay(cx, run, &order).await,
                None => {
                    if admitted {
                        uncount(cx, caller, &order).await;
                    }
                    Err(refused)
                }
            }
        }
        outcome => outcome,
    }
}

/// Buys what was judged; `admitted` says whether the gate has let it in.
async fn buy(
    cx: &Ctx,
    caller: &Caller,
    order: &Order,
    mut new: NewRun,
    admitted: &mut bool,
) -> Result<Accepted, NotAccepted> {
    let limits = caller.gate_limits();
    for _ in 0..ADMISSIONS_MAX {
        refuse_by_key(cx, caller, new.reserved).await?;
        // A new id each time: one that the gate lent us may have been inserted, ended and settled by the
        // other submit of this key, and must never be held a second time.
        new.run_id = RunId::new();
        let (epoch, run_id, quotas) = admit(cx, &new, limits).await?;
        (new.run_id, *admitted) = (run_id, true);
        let insert = cx.crash.at(CrashPoint::SubmitInsert, cx.store.submit(&new, epoch, cx.pace.lease));
        let submitted = match insert.await {
            Err(store::Error::Unavailable(error) | store::Error::Query(error)) => {
                return resolve(cx, order, &new, error).await;
            }
            Err(store::Error::Refused(constraint)) if constraint == SPENT_CHECK => {
                rebuild::end_epoch(cx, caller.tenant_id, epoch).await?;
                continue;
            }
            other => other?,
        };
        match submitted {
            Submitted::Inserted { created_at } => {
                let run = accepted(new, created_at);
                announce(cx, &run).await;
                return Ok(Accepted::New(run, quotas));
            }
            Submitted::Exists => return existing(cx, order, &new).await,
            Submitted::NotAdmitted => {
                let tenant = cx.store.find_tenant(caller.tenant_id).await?;
                if tenant.is_none_or(|tenant| tenant.status != "ACTIVE") {
                    rebuild::end_epoch(cx, caller.tenant_id, epoch).await?;
                    return Err(Refusal::Suspended.into());
                }
                rebuild::if_stale(cx, caller.tenant_id).await?;
            }
        }
    }
    Err(Error::BudgetBusy.into())
}

/// Everything that can be judged without moving money.
fn judge(cx: &Ctx, caller: &Caller, order: Order) -> Result<NewRun, Refusal> {
    if caller.suspended {
        return Err(Refusal::Suspended);
    }
    let pack = cx
        .packs
        .find(&order.pack_type)
        .ok_or_else(|| Refusal::UnknownPack(cx.packs.iter().map(|pack| pack.terms().pack_type).collect()))?;
    let timebox_secs = order.timebox_secs.unwrap_or_else(|| caller.plan.timebox_secs_default().into());
    let timebox_secs =
        caller.plan.admits(&order.pack_type, order.max_cost, timebox_secs).map_err(Refusal::Plan)?;
    let quote = pack.check(&order.inputs).map_err(|refusal| match refusal {
        pack::Refusal::InvalidInputs(errors) => Refusal::InvalidInputs(errors),
        pack::Refusal::Unavailable(why) => Refusal::PackUnavailable(why),
    })?;
    if order.max_cost < quote.at_least {
        return Err(Refusal::Plan(PlanRefusal::MaxCostTooLow { least: quote.at_least }));
    }
    Ok(NewRun {
        run_id: RunId::new(),
        tenant_id: caller.tenant_id,
        key_id: caller.key_id,
        pack_type: order.pack_type,
        idempotency_key: order.idempotency_key,
        payload: order.payload,
        inputs: order.inputs,
        metadata: order.metadata,
        trace_id: order.trace_id,
        reserved: order.max_cost,
        minimum_fee: price::minimum_fee(order.max_cost),
        timebox_secs,
    })
}

/// Refuses what the caller's key may not spend. The key's row is the truth, and [`SPENT_CHECK`] on it refuses
/// whoever comes past this look; so this spares the others the gate.
async fn refuse_by_key(cx: &Ctx, caller: &Caller, requested: UsdMicros) -> Result<(), NotAccepted> {
    let limits = caller.key_limits.as_ref();
    let Some((root, max)) = limits.and_then(|limits| Some((limits.root, limits.spend_max?))) else {
        return Ok(());
    };
    let spent = cx.store.key_spent(root).await?;
    if spent.checked_add(requested).is_some_and(|sum| sum <= max) {
        return Ok(());
    }
    let retry_after_secs = KEY_RETRY_SECS;
    Err(Refusal::SpendLimit(SpendLimit { of: Of::Key, max, spent, requested, retry_after_secs }).into())
}

/// Has a submit that the gate admitted and the books refused count in no window.
async fn uncount(cx: &Ctx, caller: &Caller, order: &Order) {
    let key_fingerprint = order.idempotency_key.fingerprint();
    let uncount = cx.budget.uncount(caller.tenant_id, &key_fingerprint, caller.gate_limits());
    if let Err(error) = uncount.await {
        tracing::warn!(trace_id = %order.trace_id, tenant_id = %caller.tenant_id,
            error = format!("{:#}", anyhow::Error::from(error)), "a refused submit counts as a run for a minute");
    }
}

/// Asks the gate. Two submits of one key that race are given the same run.
async fn admit(cx: &Ctx, new: &NewRun, limits: GateLimits) -> Result<(i64, RunId, Vec<Quota>), NotAccepted> {
    let (tenant_id, requested) = (new.tenant_id, new.reserved);
    let key_fingerprint = new.idempotency_key.fingerprint();
    for _ in 0..ASKS_MAX {
        let reserve = cx.budget.reserve(Ask {
            tenant_id,
            run_id: new.run_id,
            amount: requested,
            key_fingerprint: &key_fingerprint,
            payload: new.payload,
            limits,
        });
        // The gate follows the ledger by a moment, or by more if a process died in between, and a refusal
        // must be exact.
        let refusal = match cx.crash.at(CrashPoint::SubmitReserve, reserve).await? {
            Reserve::Held { epoch, run_id, quotas } => return Ok((epoch, run_id, quotas)),
            Reserve::Mismatch => return Err(Refusal::KeyReused.into()),
            Reserve::Limited(quota) => return Err(Refusal::RateLimited(quota).into()),
            Reserve::Unknown => {
                rebuild::if_stale(cx, tenant_id).await?;
                continue;
            }
            Reserve::Crowded => {
                let max = limits.concurrent_runs_max;
                let crowded = |now: Figures| i32::try_from(now.open_runs).is_ok_and(|open| open >= max);
                exact(cx, tenant_id, crowded).await?.map(|_| Refusal::TooManyRuns { max })
            }
            Reserve::Spent { base, .. } => {
                let month = cx.store.month(tenant_id).await?;
                if base != month.base {
                    // The gate is of another month, or a charge of the last one came late.
                    rebuild::rebuild(cx, tenant_id).await?;
                    continue;
                }
                let max = limits.monthly_spend_max.map_or(UsdMicros::MAX, |(_, max)| max);
                let left = max.get() - requested.get();
                let spent = |now: Figures| base.get() - now.available_usd_micros > left;
                exact(cx, tenant_id, spent).await?.map(|now| {
                    // What is held may come back, what was charged will not.
                    let passes = month.charged.get() <= left;
                    let retry_after_secs = if passes { OPEN_RUNS_RETRY_SECS } else { month.secs_left };
                    let spent = base.checked_sub(usd(now.available_usd_micros)).unwrap_or_default();
                    Refusal::SpendLimit(SpendLimit {
                        of: Of::Tenant,
                        max,
                        spent,
                        requested,
                        retry_after_secs,
                    })
                })
            }
            Reserve::Short { .. } => {
                let short = |now: Figures| now.available_usd_micros < requested.get();
                let refusal = |now: Figures| Refusal::BudgetExceeded {
                    available: usd(now.available_usd_micros),
                    requested,
                };
                exact(cx, tenant_id, short).await?.map(refusal)
            }
        };
        if let Some(refusal) = refusal {
            return Err(refusal.into());
        }
    }
    Err(Error::BudgetBusy.into())
}

/// The figures by which a submit is refused; `None` when the gate is to be asked again.
async fn exact(
    cx: &Ctx,
    tenant_id: TenantId,
    refused: impl Fn(Figures) -> bool,
) -> Result<Option<Figures>, Error> {
    match sweep::catch_up(cx, tenant_id, refused).await? {
        CaughtUp::Exact(figures) => Ok(Some(figures)),
        CaughtUp::Changed => Ok(None),
        CaughtUp::Undecided => Err(Error::BudgetBusy),
    }
}

/// An amount of the gate's; below zero, where no budget should ever be, nothing.
fn usd(micros: i64) -> UsdMicros {
    UsdMicros::new(micros).unwrap_or_default()
}

/// There is a run with this key already: another submit of it was faster.
async fn existing(cx: &Ctx, order: &Order, new: &NewRun) -> Result<Accepted, NotAccepted> {
    let run = cx.store.find_by_key(new.tenant_id, &order.idempotency_key).await?.ok_or(Error::BudgetBusy)?;
    if run.run_id != new.run_id {
        // The key belongs to that run for ever, so no process can insert under our reservation.
        let let_go = cx.budget.let_go(new.tenant_id, new.run_id);
        if let Err(error) = cx.crash.at(CrashPoint::SubmitLetGo, let_go).await {
            tracing::warn!(trace_id = %new.trace_id, tenant_id = %new.tenant_id, run_id = %new.run_id,
                error = format!("{:#}", anyhow::Error::from(error)), "cannot let go of a reservation; the sweep will");
        }
    }
    replay(cx, run, order).await
}

/// The insert's answer was lost. Ending the epoch under the tenant's lock waits for the statement if
/// it still runs and forbids it if it has not begun, so what is read back afterwards is final.
async fn resolve(
    cx: &Ctx,
    order: &Order,
    new: &NewRun,
    cause: anyhow::Error,
) -> Result<Accepted, NotAccepted> {
    tracing::warn!(trace_id = %new.trace_id, tenant_id = %new.tenant_id, run_id = %new.run_id,
        error = format!("{cause:#}"), "a submit's outcome is unknown; reading it back");
    for pause in READ_BACK_PAUSES {
        let read = async {
            rebuild::rebuild(cx, new.tenant_id).await?;
            Ok::<_, Error>(cx.store.find_by_key(new.tenant_id, &order.idempotency_key).await?)
        };
        match read.await {
            Ok(Some(run)) if run.run_id == new.run_id => {
                announce(cx, &run).await;
                return Ok(Accepted::New(run, Vec::new()));
            }
            Ok(Some(run)) => return replay(cx, run, order).await,
            Ok(None) => return Err(Error::Store(store::Error::Unavailable(cause)).into()),
            Err(error) if error.passes() => tokio::time::sleep(pause).await,
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::OutcomeUnknown(cause).into())
}

async fn replay(cx: &Ctx, run: Run, order: &Order) -> Result<Accepted, NotAccepted> {
    if run.payload_sha256 != order.payload.0 {
        return Err(Refusal::KeyReused.into());
    }
    if run.is_terminal() && run.is_past_retention(cx.store.now().await?) {
        return Err(Refusal::RunExpired.into());
    }
    metrics::counter!("dpp_submits_total", "outcome" => "replayed").increment(1);
    Ok(Accepted::Replayed(run))
}

/// Wakes a worker. The run is accepted whether or not this works: the reaper sends what was not.
async fn announce(cx: &Ctx, run: &Run) {
    let message = RunMessage {
        schema_version: SchemaVersion::V1,
        run_id: run.run_id,
        tenant_id: run.tenant_id,
        pack_type: run.pack_type.clone(),
        enqueued_at: run.created_at,
        trace_id: run.trace_id,
    };
    let send = cx.crash.at(CrashPoint::SubmitSend, cx.queue.send(&message));
    let why = match tokio::time::timeout(ANNOUNCE_MAX, send).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{:#}", anyhow::Error::from(error))),
        Err(_) => Some("it takes too long".to_owned()),
    };
    if let Some(error) = why {
        tracing::warn!(trace_id = %run.trace_id, tenant_id = %run.tenant_id, run_id = %run.run_id,
            error, "perhaps no message sent; the reaper sends one");
    }
    metrics::counter!("dpp_submits_total", "outcome" => "accepted").increment(1);
    tracing::info!(trace_id = %run.trace_id, tenant_id = %run.tenant_id, run_id = %run.run_id,
        pack_type = run.pack_type, reserved_usd_micros = run.reserved.get(), "run accepted");
}

fn accepted(new: NewRun, created_at: chrono::DateTime<chrono::Utc>) -> Run {
    Run {
        run_id: new.run_id,
        tenant_id: new.tenant_id,
        pack_type: new.pack_type,
        payload_sha256: new.payload.0,
        version: 1,
        reserved: new.reserved,
        minimum_fee: new.minimum_fee,
        timebox_secs: new.timebox_secs,
        attempts: 0,
        trace_id: new.trace_id,
        metadata: new.metadata,
        created_at,
        started_at: None,
        cancel_requested: false,
        state: RunState::Queued,
    }
}
