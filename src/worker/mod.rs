//! The worker: messages become work. One poller, as many receives as free slots, one run a slot, and
//! one beat for all leases.

mod beat;
mod slot;

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::beat::Leases;
use crate::flow::{Ctx, take};

/// How long one receive waits for a message: SQS's most.
const POLL_WAIT: Duration = Duration::from_secs(20);
/// How many messages one receive may bring: SQS's most.
const RECEIVE_MAX: usize = 10;
/// How long the poller rests after a failure; doubles up to the second.
const REST_LEAST: Duration = Duration::from_millis(200);
const REST_MOST: Duration = Duration::from_secs(5);

/// Works until `soft`, then lets open work end; at `hard` what is still open is handed back.
pub async fn run(cx: Arc<Ctx>, concurrency: usize, soft: CancellationToken, hard: CancellationToken) {
    let slots = Arc::new(Semaphore::new(concurrency));
    let leases = Leases::default();
    let work = TaskTracker::new();
    let beat = work.spawn(beat::run(Arc::clone(&cx), leases.clone(), hard.clone()));
    let poll = poll(&cx, &slots, &leases, &work, &hard);
    tokio::select! {
        // A receive that is cut off here may have hidden messages; they come back by themselves.
        () = soft.cancelled() => {}
        () = poll => {}
    }
    tracing::info!(open_runs = leases.count(), "the worker takes no more runs");
    // All slots are free when all permits can be had.
    let everything = u32::try_from(concurrency).unwrap_or(u32::MAX);
    drop(slots.acquire_many(everything).await);
    beat.abort();
    work.close();
    work.wait().await;
}

async fn poll(
    cx: &Arc<Ctx>,
    slots: &Arc<Semaphore>,
    leases: &Leases,
    work: &TaskTracker,
    hard: &CancellationToken,
) {
    let mut rest = REST_LEAST;
    loop {
        let Ok(permits) = free_slots(slots).await else { return };
        let received = cx.queue.receive(permits.len(), cx.pace.lease, POLL_WAIT).await;
        let taken = match received {
            Ok(messages) if messages.is_empty() => continue,
            Ok(messages) => take::take(cx, messages).await,
            Err(error) => Err(error.into()),
        };
        let taken = match taken {
            Ok(taken) => {
                rest = REST_LEAST;
                taken
            }
            Err(error) => {
                tracing::warn!(error = format!("{:#}", anyhow::Error::from(error)), "cannot take runs; resting");
                tokio::time::sleep(rest).await;
                rest = (rest * 2).min(REST_MOST);
                continue;
            }
        };
        for ((run, receipt), permit) in taken.into_iter().zip(permits) {
            let lost = leases.enter(&run, receipt.clone(), cx.pace.lease);
            let slot = slot::run(Arc::clone(cx), run, receipt, leases.clone(), lost, hard.clone());
            work.spawn(async move {
                slot.await;
                drop(permit);
            });
        }
    }
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
