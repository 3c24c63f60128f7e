//! Resend: messages of waiting runs that were never sent, or were lost.

use super::{Changed, Ctx, Error, crash::CrashPoint};
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
    if let Err(error) = cx.crash.at(CrashPoint::ResendSend, cx.queue.send(&message)).await {
        // It was marked for longer and longer; what was not sent is due again soon.
        cx.crash.at(CrashPoint::ResendUnmark, cx.store.unmark_send(due, cx.pace.lease)).await?;
        return Err(error.into());
    }
    tracing::info!(trace_id = %due.trace_id, run_id = %due.run_id, tenant_id = %due.tenant_id, "message sent again");
    Ok(Changed::Yes)
}
