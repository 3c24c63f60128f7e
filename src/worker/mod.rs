//! The worker: messages become work. One poller, as many receives as free slots, one run a slot, and
//! one beat for all leases.

mod beat;
mod slot;

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use self::beat::Leases;
use crate::flow::{
    Ctx, Error,
    crash::CrashPoint,
    take::{self, Taken},
};

/// How long one receive waits for a message: SQS's most.
const POLL_WAIT: Duration = Duration::from_secs(20);
/// How many messages one receive may bring: SQS's most.
const RECEIVE_MAX: usize = 10;
/// How long the poller rests after a failure; doubles up to the second.
const REST_LEAST: Duration = Duration::from_millis(200);
const REST_MOST: Duration = Duration::from_secs(5);

/// Where the work is done.
struct Bench {
    cx: Arc<Ctx>,
    slots: Arc<Semaphore>,
    leases: Leases,
    work: TaskTracker,
    hard: CancellationToken,
    /// No slot outlives its bench: its leases would be renewed by nobody.
    alive: CancellationToken,
    _alive: DropGuard,
}

impl Bench {
    fn new(cx: Arc<Ctx>, concurrency: usize, hard: CancellationToken) -> Self {
        let slots = Arc::new(Semaphore::new(concurrency));
        let alive = CancellationToken::new();
        let _alive = alive.clone().drop_guard();
        Self { cx, slots, leases: Leases::default(), work: TaskTracker::new(), hard, alive, _alive }
    }
}

/// Works until `soft`, then lets open work end; at `hard` what is still open is handed back.
pub async fn run(cx: Arc<Ctx>, concurrency: usize, soft: CancellationToken, hard: CancellationToken) {
    let bench = Bench::new(cx, concurrency, hard);
    // Beats for as long as anything is open, which may be beyond `soft`.
    let idle = CancellationToken::new();
    let beat = bench.work.spawn(beat::run(Arc::clone(&bench.cx), bench.leases.clone(), idle.clone()));
    poll(&bench, &soft).await;
    tracing::info!(open_runs = bench.leases.count(), "the worker takes no more runs");
    // All slots are free when all permits can be had.
    let everything = u32::try_from(concurrency).unwrap_or(u32::MAX);
    drop(bench.slots.acquire_many(everything).await);
    idle.cancel();
    drop(beat.await);
}

async fn poll(bench: &Bench, soft: &CancellationToken) {
    let mut rest = REST_LEAST;
    while let Some(Ok(permits)) = soft.run_until_cancelled(free_slots(&bench.slots)).await {
        match turn(bench, permits, POLL_WAIT, soft).await {
            Ok(_) => rest = REST_LEAST,
            Err(error) => {
                tracing::warn!(
                    error = format!("{:#}", anyhow::Error::from(error)),
                    "cannot take runs; resting"
                );
                soft.run_until_cancelled(tokio::time::sleep(rest)).await;
                rest = (rest * 2).min(REST_MOST);
            }
        }
    }
}

/// Receives once, and puts what comes to work. Returns how many runs were taken.
///
/// Only the receive is cut off by `soft`, which may leave messages hidden that come back by themselves.
/// Once runs are leased they are put to work, whatever else is asked for.
async fn turn(
    bench: &Bench,
    permits: Vec<OwnedSemaphorePermit>,
    wait: Duration,
    soft: &CancellationToken,
) -> Result<usize, Error> {
    let cx = &bench.cx;
    let receive = cx.queue.receive(permits.len(), cx.pace.lease, wait);
    let receive = cx.crash.at(CrashPoint::TakeReceive, receive);
    let messages = match soft.run_until_cancelled(receive).await {
        Some(messages) => messages?,
        None => return Ok(0),
    };
    if messages.is_empty() {
        return Ok(0);
    }
    let Taken { leased, rest } = take::take(cx, messages).await?;
    let count = leased.len();
    for ((run, receipt), permit) in leased.into_iter().zip(permits) {
        let renewed = bench.leases.enter(&run, receipt.clone(), cx.pace.lease);
        let slot = Box::pin(slot::run(Arc::clone(cx), run, receipt, renewed, bench.hard.clone()));
        let slot = bench.alive.clone().run_until_cancelled_owned(slot);
        bench.work.spawn(async move {
            slot.await;
            drop(permit);
        });
    }
    take::dismiss(cx, rest).await;
    Ok(count)
}

/// Receives once, works on what comes to its end, and returns how many runs that were: the worker's
/// unit, without its loop and without a beat.
///
/// # Errors
/// [`Error`] when nothing could be received or taken.
pub async fn once(cx: Arc<Ctx>, wait: Duration) -> Result<usize, Error> {
    let bench = Bench::new(cx, RECEIVE_MAX, CancellationToken::new());
    let permits = free_slots(&bench.slots).await.unwrap_or_default();
    let taken = turn(&bench, permits, wait, &CancellationToken::new()).await;
    bench.work.close();
    bench.work.wait().await;
    taken
}

/// Waits for one free slot and takes those that are free with it, as many as one receive may fill.
async fn free_slots(slots: &Arc<Semaphore>) -> Result<Vec<OwnedSemaphorePermit>, tokio::sync::AcquireError> {
    let mut permits = vec![Arc::clone(slots).acquire_owned().await?];
    while permits.len() < RECEIVE_MAX
        && let Ok(permit) = Arc::clone(slots).try_acquire_owned()
    {
        permits.push(permit);
    }
    Ok(permits)
}
