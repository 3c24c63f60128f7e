//! Resend: messages of waiting runs that were never sent, or were lost.

use super::{Changed, Ctx, Error, crash::CrashPoint};
use crate::{
    store::DueSend,
    wire::message::{RunMessage, SchemaVersion},
};

/// Sends one message. A copy is harmless. `starving` says that the queue is empty, so that this one is needed.
///
/// # Errors
/// [`Error`]; it is sent again soon.
pub async fn resend(
    cx: &Ctx,
    due: &DueSend,
    starving: bool,
    now: chrono::DateTime<chrono::Utc>,
) -> Result<Changed, Error> {
    let message = RunMessage {
        schema_version: SchemaVersion::V1,
        run_id: due.run_id,
        tenant_id: due.tenant_id,
        pack_type: due.pack_type.clone(),
        enqueued_at: now,
        trace_id: due.trace_id,
    };
    cx.crash.at(CrashPoint::ResendSend, cx.queue.send(&message)).await?;
    if !starving {
        // Each time for longer, so that a deep queue is not flooded with copies; but only what was sent.
        cx.crash.at(CrashPoint::ResendPutOff, cx.store.put_off_send(due, cx.pace.lease)).await?;
    }
    tracing::info!(trace_id = %due.trace_id, run_id = %due.run_id, tenant_id = %due.tenant_id, "message sent again");
    Ok(Changed::Yes)
}
