//! Reconcile: a claim whose worker is gone is judged by its object.

use super::{
    Changed, Ctx, Error,
    crash::CrashPoint,
    expire::{self, LostRun},
    finish,
};
use crate::{
    domain::{
        reconcile::{Verdict, judge},
        run::Cas,
    },
    store::{DueClaim, Ending, Guard},
};

/// Ends one stale claim.
///
/// # Errors
/// [`Error`]
pub async fn reconcile(cx: &Ctx, due: &DueClaim) -> Result<Changed, Error> {
    let run = &due.claimed;
    let sight = cx.results.look(&run.claim().result_key).await;
    let guard = Guard::of_claim(run);
    match judge(run.run_id(), run.tenant_id(), run.reserved(), run.claim(), &sight) {
        Verdict::RollForward { cost } => {
            let end =
                cx.store.end(run.run_id(), run.tenant_id(), run.trace_id(), guard, Ending::Completed(cost));
            let end = cx.crash.at(CrashPoint::ReconcileEnd, end);
            let Cas::Won(settled) = end.await? else { return Ok(Changed::Lost) };
            finish::settle(cx, &settled, "COMPLETED", "none").await?;
            Ok(Changed::Yes)
        }
        Verdict::RollBack => {
            let lost = LostRun {
                run_id: run.run_id(),
                tenant_id: run.tenant_id(),
                trace_id: run.trace_id(),
                attempts: due.attempts,
                minimum_fee: due.minimum_fee,
                cancel_requested: due.cancel_requested,
                guard,
            };
            expire::attempt(cx, &lost).await
        }
        Verdict::Audit(reason) => {
            let park = cx.store.require_audit(run, &reason);
            match cx.crash.at(CrashPoint::ReconcilePark, park).await? {
                Cas::Won(()) => {
                    metrics::counter!("dpp_audit_required_total").increment(1);
                    tracing::error!(severity = "CRITICAL", alert_channel = "money", trace_id = %run.trace_id(),
                        run_id = %run.run_id(), tenant_id = %run.tenant_id(), reason, result_key = run.claim().result_key,
                        held_usd_micros = run.reserved().get(), claimed_usd_micros = run.claim().cost.get(),
                        "AUDIT_REQUIRED");
                    Ok(Changed::Yes)
                }
                Cas::Lost => Ok(Changed::Lost),
            }
        }
        Verdict::NotYet => Ok(Changed::NotYet),
    }
}
