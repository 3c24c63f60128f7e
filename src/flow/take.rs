//! Take: messages become leased runs.

use std::collections::{HashMap, HashSet, hash_map::Entry};

use super::{Ctx, Error, crash::CrashPoint};
use crate::{
    domain::{id::RunId, run::Leased},
    queue::{Receipt, Received},
    wire::message::RunMessage,
};

/// Leases the runs of `messages`. Messages that wake nobody are deleted: their run is somebody
/// else's, done, or not allowed to run now (and is sent again when it is). Messages that are not ours
/// go to the dead-letter queue.
///
/// # Errors
/// [`Error`]; the messages come back by themselves.
pub async fn take(cx: &Ctx, messages: Vec<Received>) -> Result<Vec<(Leased, Receipt)>, Error> {
    let mut receipts: HashMap<RunId, (RunMessage, Receipt)> = HashMap::new();
    let mut spent = Vec::new();
    for Received { body, receipt } in messages {
        match body {
            Ok(message) => match receipts.entry(message.run_id) {
                Entry::Vacant(place) => drop(place.insert((message, receipt))),
                Entry::Occupied(_) => spent.push(receipt),
            },
            Err(text) => bury(cx, &text, &receipt).await,
        }
    }
    let ids: Vec<_> = receipts.keys().copied().collect();
    let leased = if ids.is_empty() { Vec::new() } else { cx.store.take(&ids, cx.pace.lease).await? };
    cx.crash.at(CrashPoint::TakeAfterLease)?;
    let mut taken = Vec::with_capacity(leased.len());
    for run in leased {
        if let Some((_, receipt)) = receipts.remove(&run.run_id) {
            tracing::info!(trace_id = %run.trace_id, run_id = %run.run_id, tenant_id = %run.tenant_id,
                attempt = run.attempt, pack_type = run.pack_type, "run taken");
            taken.push((run, receipt));
        }
    }
    if !receipts.is_empty() {
        dismiss(cx, receipts, spent).await;
    } else {
        delete(cx, spent).await;
    }
    Ok(taken)
}

/// Sorts out messages whose run could not be taken.
async fn dismiss(cx: &Ctx, mut receipts: HashMap<RunId, (RunMessage, Receipt)>, mut spent: Vec<Receipt>) {
    let ids: Vec<_> = receipts.keys().copied().collect();
    let looked = async {
        let waiting = cx.store.still_waiting(&ids).await?;
        let known: HashSet<_> = cx.store.known(&ids).await?.into_iter().collect();
        Ok::<_, Error>((waiting, known))
    };
    let Ok((waiting, known)) = looked.await else {
        // The database is away; the messages come back by themselves.
        return;
    };
    // Another worker was just looking at it: its message must not be lost.
    for run in waiting {
        receipts.remove(&run);
    }
    for (run, (message, receipt)) in receipts {
        let text = serde_json::to_string(&message).unwrap_or_default();
        if known.contains(&run) {
            spent.push(receipt);
        } else {
            bury(cx, &text, &receipt).await;
        }
    }
    delete(cx, spent).await;
}

async fn delete(cx: &Ctx, receipts: Vec<Receipt>) {
    for receipt in receipts {
        if let Err(error) = cx.queue.delete(&receipt).await {
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
    if let Err(error) = cx.queue.bury(text, receipt).await {
        tracing::warn!(
            error = format!("{:#}", anyhow::Error::from(error)),
            "cannot move it now; it comes back by itself"
        );
    }
}
