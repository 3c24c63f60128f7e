//! Resend: messages of waiting runs that were never sent, or were lost.

use super::{Changed, Ctx, Error};
use crate::{
    store::DueSend,
    wire::message::{RunMessage, SchemaVersion},
};

/// Sends one message. A copy is harmless.
///
/// # Errors
/// [`Error`]; it is sent again later.
pub async fn resend(cx: &Ctx, due: &DueSend, now: chrono::DateTime<chrono::Utc>) -> Result<Changed, Error> {
    let message = RunMessage {
        schema_version: SchemaVersion::V1,
        run_id: due.run_id,
        tenant_id: due.tenant_id,
        pack_type: due.pack_type.clone(),
        enqueued_at: now,
        trace_id: due.trace_id,
    };
    cx.queue.send(&message).await?;
    // Each time for longer, so that a deep queue is not flooded with copies; but only what was sent.
    cx.store.mark_sent(due, cx.pace.lease).await?;
    tracing::info!(trace_id = %due.trace_id, run_id = %due.run_id, tenant_id = %due.tenant_id, "message sent again");
    Ok(Changed::Yes)
}
