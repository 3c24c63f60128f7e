//! Expire: what becomes of runs whose worker is gone, and of runs that no worker took.

use super::{Changed, Ctx, Error, crash::CrashPoint, finish};
use crate::{
    config::LostRunPolicy,
    domain::{
        id::{RunId, TenantId, TraceId},
        money::UsdMicros,
        run::{Cas, Reason},
    },
    store::{DueExpiry, DueLease, Ending, Guard},
};

/// What a run is, for those who end it as lost.
#[derive(Clone, Copy, Debug)]
pub(super) struct LostRun {
    pub(super) run_id: RunId,
    pub(super) tenant_id: TenantId,
    pub(super) trace_id: TraceId,
    pub(super) attempts: i32,
    pub(super) minimum_fee: UsdMicros,
    pub(super) cancel_requested: bool,
    pub(super) guard: Guard,
}

/// Ends one expired lease: back to the queue while attempts remain, else FAILED by the policy.
///
/// # Errors
/// [`Error`]
pub async fn lease(cx: &Ctx, due: &DueLease) -> Result<Changed, Error> {
    let lost = LostRun {
        run_id: due.run_id,
        tenant_id: due.tenant_id,
        trace_id: due.trace_id,
        attempts: due.attempts,
        minimum_fee: due.minimum_fee,
        cancel_requested: due.cancel_requested,
        guard: due.guard,
    };
    attempt(cx, &lost).await
}

/// Ends one lost attempt. The platform lost it, so the platform pays for trying again.
pub(super) async fn attempt(cx: &Ctx, run: &LostRun) -> Result<Changed, Error> {
    if run.cancel_requested {
        // What the worker had counted is lost with it.
        return end(cx, run, Ending::Cancelled(UsdMicros::ZERO), "CANCELLED").await;
    }
    if run.attempts < cx.pace.attempts_max {
        let requeue = cx.store.requeue(run.run_id, run.guard, false);
        return Ok(match cx.crash.at(CrashPoint::ExpireRequeue, requeue).await? {
            Cas::Won(()) => {
                tracing::info!(trace_id = %run.trace_id, run_id = %run.run_id, tenant_id = %run.tenant_id,
                    attempts = run.attempts, "attempt lost; run back in the queue");
                Changed::Yes
            }
            Cas::Lost => Changed::Lost,
        });
    }
    let charge = match cx.pace.lost_run_policy {
        LostRunPolicy::Refund => UsdMicros::ZERO,
        LostRunPolicy::MinimumFee => run.minimum_fee,
    };
    end(cx, run, Ending::Failed(charge, Reason::lost(run.attempts)), "FAILED").await
}

/// Ends one run that waited too long; nothing is charged.
///
/// # Errors
/// [`Error`]
pub async fn waiting(cx: &Ctx, due: &DueExpiry) -> Result<Changed, Error> {
    let run = LostRun {
        run_id: due.run_id,
        tenant_id: due.tenant_id,
        trace_id: due.trace_id,
        attempts: 0,
        minimum_fee: UsdMicros::ZERO,
        cancel_requested: false,
        guard: due.guard,
    };
    end(cx, &run, Ending::Expired(Reason::expired_in_queue()), "EXPIRED").await
}

async fn end(cx: &Ctx, run: &LostRun, ending: Ending, status: &'static str) -> Result<Changed, Error> {
    let end = cx.store.end(run.run_id, run.tenant_id, run.trace_id, run.guard, ending);
    let Cas::Won(settled) = cx.crash.at(CrashPoint::ExpireEnd, end).await? else { return Ok(Changed::Lost) };
    finish::settle(cx, &settled, status, "none").await?;
    Ok(Changed::Yes)
}
