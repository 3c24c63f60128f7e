//! The reaper: small passes that repair what the dead left. Each is idempotent, bounded, and takes no
//! hint; any number of reapers may run.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use tokio::time::MissedTickBehavior;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::flow::{
    self, Changed, Ctx, Error, Tally, crash::CrashPoint, expire, reconcile, resend, retain, snapshot, sweep,
    usage,
};

/// Rows that a pass reads at once.
const BATCH_ROWS_MAX: i64 = 200;
/// Batches of one pass; what is left is the next pass's.
const BATCHES_MAX: usize = 200;
/// Rows that a pass works on at once.
const ROWS_AT_ONCE: usize = 8;
/// A tenant's ledger is summed up once its tail is this long.
const SNAPSHOT_TAIL_ROWS: i64 = 5_000;
/// Failures in a row after which a pass stops: what it needs is down. A row that merely cannot be judged
/// yet is no failure.
const FAILURES_IN_A_ROW_MAX: u32 = 30;
/// Tenants that one pass sweeps.
const TENANTS_SWEPT_MAX: i64 = 2_000;

/// A pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Leases that have run out.
    Leases,
    /// Claims that are stale.
    Claims,
    /// Messages that were never sent or were lost.
    Unsent,
    /// Runs too long in the queue.
    Waiting,
    /// Reservations and runs that do not match.
    Reservations,
    /// Runs past their retention.
    Retention,
    /// Ledgers with a long tail.
    Snapshots,
    /// Days of usage that are over.
    Usage,
}

impl Pass {
    /// All of them, in an order in which one repairs what the next would wait for.
    pub const ALL: [Self; 8] = [
        Self::Leases,
        Self::Claims,
        Self::Waiting,
        Self::Unsent,
        Self::Reservations,
        Self::Retention,
        Self::Snapshots,
        Self::Usage,
    ];

    /// Its name in logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Leases => "leases",
            Self::Claims => "claims",
            Self::Unsent => "unsent",
            Self::Waiting => "waiting",
            Self::Reservations => "reservations",
            Self::Retention => "retention",
            Self::Snapshots => "snapshots",
            Self::Usage => "usage",
        }
    }

    fn interval(self, cx: &Ctx) -> Duration {
        match self {
            Self::Claims => cx.pace.reconcile_interval,
            _ => cx.pace.reaper_interval,
        }
    }

    /// Does it once.
    ///
    /// # Errors
    /// [`Error`] when the pass could not look; rows that it could not help are in the tally.
    pub async fn once(self, cx: &Ctx) -> Result<Tally, Error> {
        match self {
            Self::Leases => leases(cx).await,
            Self::Claims => claims(cx).await,
            Self::Unsent => unsent(cx).await,
            Self::Waiting => waiting(cx).await,
            Self::Reservations => reservations(cx).await,
            Self::Retention => retention(cx).await,
            Self::Snapshots => snapshots(cx).await,
            Self::Usage => roll_ups(cx).await,
        }
    }
}

/// Repeats all passes until `stop`.
pub async fn run(cx: Arc<Ctx>, stop: CancellationToken) {
    let passes = TaskTracker::new();
    for pass in Pass::ALL {
        passes.spawn(drive(Arc::clone(&cx), pass, stop.clone()));
    }
    passes.close();
    passes.wait().await;
}

async fn drive(cx: Arc<Ctx>, pass: Pass, stop: CancellationToken) {
    let interval = pass.interval(&cx);
    // Reapers that started together must not stay together.
    let jitter = interval.mul_f64(rand::random_range(0.0..0.25));
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + jitter, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let started = std::time::Instant::now();
        let outcome = flow::survive(pass.once(&cx)).await.unwrap_or_else(|panicked| Err(panicked.into()));
        let elapsed = started.elapsed();
        metrics::histogram!("dpp_reaper_pass_seconds", "pass" => pass.name()).record(elapsed);
        match outcome {
            Ok(tally) => report(pass, tally, elapsed),
            Err(error) => {
                tracing::warn!(
                    pass = pass.name(),
                    error = format!("{:#}", anyhow::Error::from(error)),
                    "a pass could not look; trying again"
                );
            }
        }
    }
}

fn report(pass: Pass, tally: Tally, elapsed: Duration) {
    for (what, count) in
        [("found", tally.found), ("changed", tally.changed), ("lost", tally.lost), ("failed", tally.failed)]
    {
        metrics::counter!("dpp_reaper_rows_total", "pass" => pass.name(), "what" => what).increment(count);
    }
    let (pass, duration_ms) = (pass.name(), elapsed.as_millis());
    let Tally { found, changed, lost, failed } = tally;
    if found == 0 {
        tracing::debug!(pass, duration_ms, "pass: nothing due");
    } else {
        tracing::info!(pass, found, changed, lost, failed, duration_ms, "pass");
    }
}

/// Works on rows, several at once, and counts what became of each. `false` when so many failed in a
/// row that what they need must be down.
async fn act<T, F>(rows: Vec<T>, tally: &mut Tally, mut act: impl FnMut(T) -> F) -> bool
where
    F: Future<Output = Result<Changed, Error>>,
{
    let mut failures = 0;
    let mut work = stream::iter(rows.into_iter().map(&mut act)).buffer_unordered(ROWS_AT_ONCE);
    while let Some(outcome) = work.next().await {
        tally.count(&outcome);
        match outcome {
            Ok(_) => failures = 0,
            Err(error) => {
                failures += 1;
                tracing::warn!(
                    error = format!("{:#}", anyhow::Error::from(error)),
                    "a row could not be helped now"
                );
            }
        }
        if failures >= FAILURES_IN_A_ROW_MAX {
            return false;
        }
    }
    true
}

async fn leases(cx: &Ctx) -> Result<Tally, Error> {
    let (mut tally, mut after) = (Tally::default(), None);
    for _ in 0..BATCHES_MAX {
        let due = cx.store.due_leases(after, BATCH_ROWS_MAX).await?;
        let Some(last) = due.last() else { break };
        after = last.guard.lease_expires_at.map(|at| (at, last.run_id));
        if !act(due, &mut tally, |due| async move { expire::lease(cx, &due).await }).await {
            break;
        }
    }
    Ok(tally)
}

async fn claims(cx: &Ctx) -> Result<Tally, Error> {
    let (mut tally, mut after) = (Tally::default(), None);
    for _ in 0..BATCHES_MAX {
        let due = cx.store.due_claims(cx.pace.reconcile_threshold, after, BATCH_ROWS_MAX).await?;
        let Some(last) = due.last() else { break };
        after = Some((last.claimed.claim().claimed_at, last.claimed.run_id()));
        if !act(due, &mut tally, |due| async move { reconcile::reconcile(cx, &due).await }).await {
            break;
        }
    }
    Ok(tally)
}

async fn unsent(cx: &Ctx) -> Result<Tally, Error> {
    let mut tally = Tally::default();
    // Not knowing is like a queue that holds something: runs are sent again, if later.
    let starving = cx.queue.depth().await.is_ok_and(|depth| depth == 0);
    for _ in 0..BATCHES_MAX {
        let mark = cx.store.due_sends(cx.pace.lease, starving, BATCH_ROWS_MAX);
        let due = cx.crash.at(CrashPoint::ResendMark, mark).await?;
        if due.is_empty() {
            break;
        }
        let now = cx.store.now().await?;
        act(due, &mut tally, |due| async move { resend::resend(cx, &due, starving, now).await }).await;
        // With the queue away, what was tried first may be due again by now.
        if tally.failed > 0 {
            break;
        }
    }
    Ok(tally)
}

async fn waiting(cx: &Ctx) -> Result<Tally, Error> {
    let (mut tally, mut after) = (Tally::default(), None);
    for _ in 0..BATCHES_MAX {
        let due = cx.store.due_expiries(cx.pace.queue_ttl, after, BATCH_ROWS_MAX).await?;
        let Some(last) = due.last() else { break };
        after = Some((last.created_at, last.run_id));
        if !act(due, &mut tally, |due| async move { expire::waiting(cx, &due).await }).await {
            break;
        }
    }
    Ok(tally)
}

async fn retention(cx: &Ctx) -> Result<Tally, Error> {
    let (mut tally, mut after) = (Tally::default(), None);
    for _ in 0..BATCHES_MAX {
        let due = cx.store.due_purges(after, BATCH_ROWS_MAX).await?;
        let Some(last) = due.last() else { break };
        after = Some((last.retention_until, last.run_id));
        if !act(due, &mut tally, |due| async move { retain::purge(cx, &due).await }).await {
            break;
        }
    }
    Ok(tally)
}

/// Sweeps all tenants, or, where there are very many, as many as a pass may from a place drawn by lot:
/// no tenant waits for ever, and a pass needs no memory of the last.
async fn reservations(cx: &Ctx) -> Result<Tally, Error> {
    let mut tally = Tally::default();
    let mut after = cx.store.some_tenant(TENANTS_SWEPT_MAX).await?;
    let mut wrapped = after.is_none();
    let mut swept = 0;
    while swept < TENANTS_SWEPT_MAX {
        let tenants = cx.store.tenants(after, BATCH_ROWS_MAX.min(TENANTS_SWEPT_MAX - swept)).await?;
        let Some(last) = tenants.last() else {
            if wrapped {
                break;
            }
            (wrapped, after) = (true, None);
            continue;
        };
        after = Some(last.tenant_id);
        swept += i64::try_from(tenants.len()).unwrap_or(i64::MAX);
        let mut sweeps = stream::iter(
            tenants
                .into_iter()
                .map(|tenant| async move { (tenant.tenant_id, sweep::sweep(cx, tenant.tenant_id).await) }),
        )
        .buffer_unordered(ROWS_AT_ONCE);
        let mut failures = 0;
        while let Some((tenant_id, outcome)) = sweeps.next().await {
            match outcome {
                Ok(swept) => {
                    failures = 0;
                    tally.add(swept);
                }
                // One tenant that cannot be helped must not hide the others.
                Err(error) => {
                    failures += 1;
                    tally.add(Tally { found: 1, failed: 1, ..Tally::default() });
                    tracing::warn!(%tenant_id, error = format!("{:#}", anyhow::Error::from(error)), "cannot sweep a tenant now");
                }
            }
            if failures >= FAILURES_IN_A_ROW_MAX {
                return Ok(tally);
            }
        }
    }
    Ok(tally)
}

async fn snapshots(cx: &Ctx) -> Result<Tally, Error> {
    let mut tally = Tally::default();
    let due = cx.store.tenants_to_snapshot(SNAPSHOT_TAIL_ROWS, BATCH_ROWS_MAX).await?;
    act(due, &mut tally, |tenant_id| async move { snapshot::snapshot(cx, tenant_id).await }).await;
    Ok(tally)
}

async fn roll_ups(cx: &Ctx) -> Result<Tally, Error> {
    let (mut tally, mut after) = (Tally::default(), None);
    for _ in 0..BATCHES_MAX {
        let due = cx.store.due_roll_ups(after, BATCH_ROWS_MAX).await?;
        let Some(last) = due.last() else { break };
        after = Some(last.tenant_id);
        if !act(due, &mut tally, |due| async move { usage::roll_up(cx, due).await }).await {
            break;
        }
    }
    Ok(tally)
}
