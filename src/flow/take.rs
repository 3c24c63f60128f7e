//! Take: messages become leased runs.

use std::collections::{HashMap, HashSet, hash_map::Entry};

use super::{Ctx, Error, crash::CrashPoint};
use crate::{
    domain::{id::RunId, run::Leased},
    queue::{Receipt, Received},
    wire::message::RunMessage,
};

/// What became of some messages.
#[derive(Debug)]
pub struct Taken {
    /// Runs that are now this worker's, each with its message.
    pub leased: Vec<(Leased, Receipt)>,
    /// The other messages, for [`dismiss`].
    pub rest: Rest,
}

/// Messages that gave no work.
#[derive(Debug)]
pub struct Rest {
    untaken: HashMap<RunId, (RunMessage, Receipt)>,
    copies: Vec<Receipt>,
    foreign: Vec<(String, Receipt)>,
}

/// Leases the runs of `messages`. Nothing is awaited between the lease and the answer, so a worker that
/// is told to stop loses none of what it has taken.
///
/// # Errors
/// [`Error`]; the messages come back by themselves.
pub async fn take(cx: &Ctx, messages: Vec<Received>) -> Result<Taken, Error> {
    let mut untaken: HashMap<RunId, (RunMessage, Receipt)> = HashMap::new();
    let (mut copies, mut foreign) = (Vec::new(), Vec::new());
    for Received { body, receipt } in messages {
        match body {
            Ok(message) => match untaken.entry(message.run_id) {
                Entry::Vacant(place) => drop(place.insert((message, receipt))),
                Entry::Occupied(_) => copies.push(receipt),
            },
            Err(text) => foreign.push((text, receipt)),
        }
    }
    let ids: Vec<_> = untaken.keys().copied().collect();
    let runs = if ids.is_empty() {
        Vec::new()
    } else {
        cx.crash.at(CrashPoint::TakeLease, cx.store.take(&ids, cx.pace.lease)).await?
    };
    let mut leased = Vec::with_capacity(runs.len());
    for run in runs {
        if let Some((_, receipt)) = untaken.remove(&run.run_id) {
            tracing::info!(trace_id = %run.trace_id, run_id = %run.run_id, tenant_id = %run.tenant_id,
                attempt = run.attempt, pack_type = run.pack_type, "run taken");
            leased.push((run, receipt));
        }
    }
    Ok(Taken { leased, rest: Rest { untaken, copies, foreign } })
}

/// Deletes messages that wake nobody: their run is somebody else's, done, or not allowed to run now (and
/// is sent again when it is). Those that are not ours go to the dead-letter queue.
pub async fn dismiss(cx: &Ctx, rest: Rest) {
    let Rest { mut untaken, copies: mut spent, foreign } = rest;
    for (text, receipt) in foreign {
        bury(cx, &text, &receipt).await;
    }
    if !untaken.is_empty() {
        let ids: Vec<_> = untaken.keys().copied().collect();
        let looked = async {
            let waiting = cx.store.still_waiting(&ids).await?;
            let known: HashSet<_> = cx.store.known(&ids).await?.into_iter().collect();
            Ok::<_, Error>((waiting, known))
        };
        // With the database away nothing is known of them; they come back by themselves.
        if let Ok((waiting, known)) = looked.await {
            // Another worker was just looking at it: its message must not be lost.
            for run in waiting {
                untaken.remove(&run);
            }
            for (run, (message, receipt)) in untaken {
                if known.contains(&run) {
                    spent.push(receipt);
                } else {
                    bury(cx, &serde_json::to_string(&message).unwrap_or_default(), &receipt).await;
                }
            }
        }
    }
    delete(cx, spent).await;
}

async fn delete(cx: &Ctx, receipts: Vec<Receipt>) {
    for receipt in receipts {
        if let Err(error) = cx.crash.at(CrashPoint::TakeDelete, cx.queue.delete(&receipt)).await {
            tracing::warn!(
                error = format!("{:#}", anyhow::Error::from(error)),
                "cannot delete a spent message"
            );
        }
    }
}

async fn bury(cx: &Ctx, text: &str, receipt: &Receipt) {
    tracing::warn!(body_bytes = text.len(), "a message is not ours; moving it to the dead-letter queue");
    metrics::counter!("dpp_messages_buried_total").increment(1);
    if let Err(error) = cx.crash.at(CrashPoint::TakeBury, cx.queue.bury(text, receipt)).await {
        tracing::warn!(
            error = format!("{:#}", anyhow::Error::from(error)),
            "cannot move it now; it comes back by itself"
        );
    }
}
