//! The beat: renews all of a worker's leases in one statement, and their messages' hiding with them.
//! A run whose lease is gone is stopped.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        id::{LeaseToken, RunId},
        run::Leased,
    },
    flow::{self, Ctx, crash::CrashPoint},
    queue::Receipt,
};

/// How soon a worker hears of a buyer's wish that a run stop.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The leases that this worker holds.
#[derive(Clone, Default)]
pub(super) struct Leases(Arc<Mutex<HashMap<RunId, Held>>>);

struct Held {
    token: LeaseToken,
    receipt: Receipt,
    /// After this the reaper may have given the run away, whatever the last beat said.
    until: Instant,
    lost: CancellationToken,
    cancelled: CancellationToken,
}

impl Leases {
    fn held(&self) -> MutexGuard<'_, HashMap<RunId, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to renew a lease, for as long as what is returned lives.
    pub(super) fn enter(&self, run: &Leased, receipt: Receipt, lease: Duration) -> Renewed {
        let (lost, cancelled) = (CancellationToken::new(), CancellationToken::new());
        let until = Instant::now() + lease;
        let held =
            Held { token: run.token, receipt, until, lost: lost.clone(), cancelled: cancelled.clone() };
        if let Some(old) = self.held().insert(run.run_id, held) {
            // Taken anew by the very worker that had lost it.
            old.lost.cancel();
        }
        Renewed { leases: self.clone(), run_id: run.run_id, token: run.token, lost, cancelled }
    }

    pub(super) fn count(&self) -> usize {
        self.held().len()
    }
}

/// A lease that the beat renews. Its end ends the renewal, also when the slot panics: a lease that nobody
/// works under must run out.
pub(super) struct Renewed {
    leases: Leases,
    run_id: RunId,
    token: LeaseToken,
    lost: CancellationToken,
    cancelled: CancellationToken,
}

impl Renewed {
    /// Cancelled when the lease is found gone.
    pub(super) fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Cancelled when the buyer wishes the run to stop.
    pub(super) fn cancelled(&self) -> &CancellationToken {
        &self.cancelled
    }
}

impl Drop for Renewed {
    fn drop(&mut self) {
        let mut held = self.leases.held();
        if held.get(&self.run_id).is_some_and(|lease| lease.token == self.token) {
            held.remove(&self.run_id);
        }
    }
}

/// Beats until `stop`, and looks for runs to cancel more often than that: neither waits for the other.
pub(super) async fn run(cx: Arc<Ctx>, leases: Leases, stop: CancellationToken) {
    tokio::join!(
        repeat(cx.pace.heartbeat, &stop, || once(&cx, &leases)),
        repeat(LOOK_INTERVAL.min(cx.pace.heartbeat), &stop, || look(&cx, &leases)),
    );
}

async fn repeat<F: Future<Output = ()>>(interval: Duration, stop: &CancellationToken, round: impl Fn() -> F) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        if flow::survive(round()).await.is_err() {
            tracing::error!("a beat panicked; the next is tried");
        }
    }
}

/// Stops the runs whose buyers wish it.
async fn look(cx: &Ctx, leases: &Leases) {
    let mine: Vec<_> = leases.held().keys().copied().collect();
    if mine.is_empty() {
        return;
    }
    match cx.store.to_cancel(&mine).await {
        Ok(runs) => {
            let held = leases.held();
            for lease in runs.iter().filter_map(|run| held.get(run)) {
                lease.cancelled.cancel();
            }
        }
        Err(error) => {
            tracing::warn!(
                error = format!("{:#}", anyhow::Error::from(error)),
                "cannot look for runs to cancel"
            );
        }
    }
}

/// One beat.
async fn once(cx: &Ctx, leases: &Leases) {
    let (mine, receipts): (Vec<_>, Vec<_>) =
        leases.held().iter().map(|(run, held)| ((*run, held.token), held.receipt.clone())).unzip();
    metrics::gauge!("dpp_worker_slots_busy").set(u32::try_from(mine.len()).unwrap_or(u32::MAX));
    if mine.is_empty() {
        return;
    }
    let began = Instant::now();
    // The queue must not delay the database: a lease that is not renewed in time is lost.
    let hide = cx.crash.at(CrashPoint::BeatHide, cx.queue.hide(&receipts, cx.pace.lease));
    let hide = tokio::time::timeout(cx.pace.heartbeat, hide);
    let renew = cx.crash.at(CrashPoint::BeatRenew, cx.store.beat(&mine, cx.pace.lease));
    let (renewed, hidden) = tokio::join!(renew, hide);
    match hidden {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(
                error = format!("{:#}", anyhow::Error::from(error)),
                "cannot keep messages hidden"
            );
        }
        Err(_) => tracing::warn!("cannot keep all messages hidden in time; copies are harmless"),
    }
    let renewed = match renewed {
        Ok(renewed) => Some(renewed),
        Err(error) => {
            tracing::warn!(error = format!("{:#}", anyhow::Error::from(error)), "cannot renew leases");
            None
        }
    };
    let mut held = leases.held();
    for (run, token) in mine {
        let Some(lease) = held.get_mut(&run).filter(|lease| lease.token == token) else { continue };
        match &renewed {
            Some(renewed) if renewed.contains(&run) => lease.until = began + cx.pace.lease,
            Some(_) => lose(run, lease, "its lease is gone"),
            None if Instant::now() >= lease.until => {
                lose(run, lease, "its lease could not be renewed in time")
            }
            None => {}
        }
    }
}

fn lose(run: RunId, lease: &Held, why: &str) {
    tracing::info!(run_id = %run, why, "stopping a run");
    metrics::counter!("dpp_leases_lost_total").increment(1);
    lease.lost.cancel();
}
