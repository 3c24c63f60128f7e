//! One run in work, from its lease to its message's end.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt as _;
use tokio_util::sync::CancellationToken;

use super::beat::Renewed;
use crate::{
    domain::{
        price::Meter,
        run::{Leased, Reason},
    },
    flow::{
        Ctx, Error,
        crash::CrashPoint,
        finish::{self, Finish},
    },
    pack::{Failure, Job, Product},
    queue::Receipt,
};

/// How the work came out.
enum Work {
    Done(Product),
    Failed(Reason),
    /// The lease is somebody else's.
    LeaseLost,
    /// The worker must stop now.
    Stopped,
    /// The buyer wishes the run to stop.
    Cancelled,
    /// This worker does not know the pack.
    UnknownPack,
}

/// Works on a leased run.
pub(super) async fn run(
    cx: Arc<Ctx>,
    run: Leased,
    receipt: Receipt,
    renewed: Renewed,
    hard: CancellationToken,
) {
    let meter = Meter::new(run.reserved);
    let started = std::time::Instant::now();
    let (work, version) = work(&cx, &run, &meter, &renewed, &hard).await;
    // What follows is short, and ends the lease itself.
    drop(renewed);
    metrics::histogram!("dpp_run_seconds", "pack" => run.pack_type.clone()).record(started.elapsed());
    let finished = match work {
        #[expect(clippy::disallowed_methods, reason = "shown in the envelope; nothing is judged by it")]
        Work::Done(product) => {
            finish::finish(&cx, &run, version, &product, meter.used(), chrono::Utc::now()).await
        }
        Work::Failed(reason) => finish::fail(&cx, &run, meter.used(), reason).await,
        Work::Cancelled => finish::stop(&cx, &run, meter.used()).await,
        Work::LeaseLost => Ok(Finish::Lost),
        Work::Stopped => return hand_back(&cx, &run, Some(&receipt)).await,
        // Its message stays hidden for a while: shown at once, it would come straight back here.
        Work::UnknownPack => return hand_back(&cx, &run, None).await,
    };
    match finished {
        Ok(Finish::Ended | Finish::Lost) => {
            if let Err(error) = cx.crash.at(CrashPoint::FinishDelete, cx.queue.delete(&receipt)).await {
                tracing::warn!(trace_id = %run.trace_id, run_id = %run.run_id, tenant_id = %run.tenant_id,
                    error = format!("{:#}", anyhow::Error::from(error)), "cannot delete a message; it comes again and is deleted then");
            }
        }
        Err(error) => unfinished(&run, error),
    }
}

fn unfinished(run: &Leased, error: Error) {
    tracing::error!(trace_id = %run.trace_id, run_id = %run.run_id, tenant_id = %run.tenant_id,
        error = format!("{:#}", anyhow::Error::from(error)), "a run could not be finished; the reaper will");
}

/// Gives the run back, and shows its message again where there is one to show.
async fn hand_back(cx: &Ctx, run: &Leased, show: Option<&Receipt>) {
    let handed = finish::hand_back(cx, run).await;
    let Some(receipt) = show else {
        return if let Err(error) = handed {
            unfinished(run, error)
        };
    };
    let shown = match handed {
        Ok(Finish::Ended) => {
            let show = cx.queue.hide(std::slice::from_ref(receipt), Duration::ZERO);
            cx.crash.at(CrashPoint::HandBackShow, show).await
        }
        Ok(Finish::Lost) => cx.crash.at(CrashPoint::FinishDelete, cx.queue.delete(receipt)).await,
        Err(error) => return unfinished(run, error),
    };
    if let Err(error) = shown {
        tracing::warn!(trace_id = %run.trace_id, run_id = %run.run_id, tenant_id = %run.tenant_id,
            error = format!("{:#}", anyhow::Error::from(error)), "cannot show a message again; it shows itself later");
    }
}

/// Runs the pack within its timebox, for as long as the lease is ours.
async fn work<'a>(
    cx: &'a Ctx,
    run: &Leased,
    meter: &Meter,
    renewed: &Renewed,
    hard: &CancellationToken,
) -> (Work, &'a str) {
    let Some(pack) = cx.packs.find(&run.pack_type) else {
        // This worker is older or younger than the API; another may know the pack.
        tracing::error!(trace_id = %run.trace_id, run_id = %run.run_id, tenant_id = %run.tenant_id,
            pack_type = run.pack_type, "this worker does not know the pack; handing the run back");
        return (Work::UnknownPack, "");
    };
    let timebox = Duration::from_secs(u64::from(run.timebox_secs.unsigned_abs()));
    let deadline = tokio::time::Instant::now() + timebox;
    let job = Job { inputs: run.inputs.clone(), deadline, meter: meter.clone() };
    let product = AssertUnwindSafe(pack.run(job)).catch_unwind();
    let work = tokio::select! {
        biased;
        () = renewed.lost().cancelled() => Work::LeaseLost,
        () = renewed.cancelled().cancelled() => Work::Cancelled,
        () = hard.cancelled() => Work::Stopped,
        product = tokio::time::timeout_at(deadline, product) => match product {
            Ok(Ok(Ok(product))) => Work::Done(product),
            Ok(Ok(Err(Failure { reason_code, detail }))) => {
                Work::Failed(Reason { code: reason_code.to_owned(), detail })
            }
            Ok(Err(_)) => {
                tracing::error!(trace_id = %run.trace_id, run_id = %run.run_id, tenant_id = %run.tenant_id,
                    pack_type = run.pack_type, "a pack panicked");
                Work::Failed(Reason::pack_crashed())
            }
            Err(_) => Work::Failed(Reason::timed_out(run.timebox_secs)),
        },
    };
    (work, pack.terms().version)
}
