//! Finish: claim (PostgreSQL) → result and receipt (S3) → final state, charge and release
//! (PostgreSQL) → gate (Redis). The worker then deletes the message.

use std::{future::Future, time::Duration};

use chrono::{DateTime, Utc};
use sha2::{Digest as _, Sha256};

use super::{Ctx, Error, crash::CrashPoint};
use crate::{
    domain::{
        api_key::hex,
        money::UsdMicros,
        run::{Cas, Leased, Reason, Settled},
    },
    pack::Product,
    results::result_key,
    store::{self, Ending, Guard},
    wire::envelope::{Cost, Meta, PackEnvelope},
};

/// What became of the work.
#[derive(Debug)]
#[must_use]
pub enum Finish {
    /// The run has ended; its message can go.
    Ended,
    /// The run is somebody else's by now; nothing was changed, its message can go.
    Lost,
}

/// A database that is away for a moment must not cost the work that was just done.
const PATIENCE: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(8)];

/// Delivers a product at `cost`, which the meter has kept within the hold.
///
/// # Errors
/// [`Error`]; what is left is rolled forward or back by the reaper.
pub async fn finish(
    cx: &Ctx,
    run: &Leased,
    pack_version: &str,
    product: &Product,
    cost: UsdMicros,
    generated_at: DateTime<Utc>,
) -> Result<Finish, Error> {
    let bytes = envelope(run, pack_version, product, cost, generated_at);
    let sha256 = hex(&Sha256::digest(&bytes));
    let key = result_key(run.tenant_id, run.run_id, run.attempt, run.token);
    let claim = patiently(|| {
        cx.crash.at(CrashPoint::FinishClaim, cx.store.claim(run, key.clone(), sha256.clone(), cost))
    });
    let claim = claim.await?;
    let Cas::Won(claimed) = claim else { return Ok(lost(run)) };
    cx.crash.at(CrashPoint::FinishPut, cx.results.put(&claimed, bytes)).await?;
    let guard = Guard::of_claim(&claimed);
    let end = patiently(|| {
        let end = cx.store.end(run.run_id, run.tenant_id, run.trace_id, guard, Ending::Completed(cost));
        cx.crash.at(CrashPoint::FinishEnd, end)
    });
    let Cas::Won(settled) = end.await? else { return Ok(lost(run)) };
    settle(cx, &settled, "COMPLETED", &run.pack_type).await?;
    Ok(Finish::Ended)
}

/// Ends a run that its inputs or its pack made fail. It pays what the meter counted, at least the
/// minimum fee.
///
/// # Errors
/// [`Error`]; the lease runs out and the run is tried again.
pub async fn fail(cx: &Ctx, run: &Leased, used: UsdMicros, reason: Reason) -> Result<Finish, Error> {
    let ending = Ending::Failed(charge(run, used), reason);
    end_unfinished(cx, run, CrashPoint::FailEnd, ending, "FAILED").await
}

/// Ends a run whose buyer wishes it to stop. It pays what the meter counted, at least the minimum fee.
///
/// # Errors
/// [`Error`]; the lease runs out and the run is cancelled by the reaper, for free.
pub async fn stop(cx: &Ctx, run: &Leased, used: UsdMicros) -> Result<Finish, Error> {
    let ending = Ending::Cancelled(charge(run, used));
    end_unfinished(cx, run, CrashPoint::StopEnd, ending, "CANCELLED").await
}

fn charge(run: &Leased, used: UsdMicros) -> UsdMicros {
    used.max(run.minimum_fee).min(run.reserved)
}

async fn end_unfinished(
    cx: &Ctx,
    run: &Leased,
    at: CrashPoint,
    ending: Ending,
    status: &'static str,
) -> Result<Finish, Error> {
    let guard = Guard::of_lease(run);
    let end = patiently(|| {
        let end = cx.store.end(run.run_id, run.tenant_id, run.trace_id, guard, ending.clone());
        cx.crash.at(at, end)
    });
    let Cas::Won(settled) = end.await? else { return Ok(lost(run)) };
    settle(cx, &settled, status, &run.pack_type).await?;
    Ok(Finish::Ended)
}

/// Gives a leased run back unfinished, uncharged, and not counted as an attempt.
///
/// # Errors
/// [`Error`]; the lease runs out and the run is tried again.
pub async fn hand_back(cx: &Ctx, run: &Leased) -> Result<Finish, Error> {
    let requeue = patiently(|| {
        let requeue = cx.store.requeue(run.run_id, Guard::of_lease(run), true);
        cx.crash.at(CrashPoint::HandBackRequeue, requeue)
    });
    match requeue.await? {
        Cas::Won(()) => {
            tracing::info!(trace_id = %run.trace_id, run_id = %run.run_id, tenant_id = %run.tenant_id,
                "run handed back");
            Ok(Finish::Ended)
        }
        Cas::Lost => Ok(lost(run)),
    }
}

/// The ledger has ended the hold; the gate follows. If it cannot, the sweep makes it.
pub(super) async fn settle(
    cx: &Ctx,
    settled: &Settled,
    status: &'static str,
    pack_type: &str,
) -> Result<(), Error> {
    metrics::counter!("dpp_runs_ended_total", "status" => status, "pack" => pack_type.to_owned())
        .increment(1);
    metrics::counter!("dpp_charged_usd_micros_total", "pack" => pack_type.to_owned())
        .increment(settled.charge().get().unsigned_abs());
    tracing::info!(trace_id = %settled.trace_id(), run_id = %settled.run_id(), tenant_id = %settled.tenant_id(),
        status, charge_usd_micros = settled.charge().get(), "run ended");
    if let Err(error) = cx.crash.at(CrashPoint::Settle, cx.budget.settle(settled)).await {
        tracing::warn!(trace_id = %settled.trace_id(), run_id = %settled.run_id(), tenant_id = %settled.tenant_id(),
            error = format!("{:#}", anyhow::Error::from(error)), "the gate does not know yet; the sweep tells it");
    }
    Ok(())
}

fn lost(run: &Leased) -> Finish {
    tracing::info!(trace_id = %run.trace_id, run_id = %run.run_id, tenant_id = %run.tenant_id,
        "the run is somebody else's; stopping without a trace");
    Finish::Lost
}

fn envelope(
    run: &Leased,
    pack_version: &str,
    product: &Product,
    cost: UsdMicros,
    generated_at: DateTime<Utc>,
) -> Vec<u8> {
    let envelope = PackEnvelope {
        schema_version: "1",
        run_id: run.run_id,
        pack_type: &run.pack_type,
        pack_version,
        status: "COMPLETED",
        generated_at,
        cost: Cost { reserved_usd: run.reserved, used_usd: cost, minimum_fee_usd: run.minimum_fee },
        data: &product.data,
        artifacts: [],
        logs: &product.logs,
        meta: Meta { trace_id: run.trace_id, attempt: run.attempt },
    };
    serde_json::to_vec(&envelope).expect("an envelope has only text keys and no failing serializer")
}

/// Repeats a compare-and-set while the database is away. If an unanswered one was applied after all,
/// the next finds its version gone and answers `Lost`: the reaper then finishes what is left.
async fn patiently<T, F>(mut attempt: impl FnMut() -> F) -> Result<T, store::Error>
where
    F: Future<Output = Result<T, store::Error>>,
{
    for pause in PATIENCE {
        match attempt().await {
            Err(store::Error::Unavailable(error)) => {
                tracing::warn!(error = format!("{error:#}"), "the database is away; trying again");
                tokio::time::sleep(pause).await;
            }
            other => return other,
        }
    }
    attempt().await
}
