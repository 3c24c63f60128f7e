//! Cancel: a buyer wishes a run to stop. One that waits ends at once, for free. One in work is stopped by
//! its worker within seconds and pays what it used, at least the minimum fee. One whose result is already
//! being delivered may complete.

use std::time::Duration;

use super::{
    Ctx, Error,
    crash::CrashPoint,
    finish,
    read::{self, Found},
};
use crate::{
    domain::{
        id::{RunId, TenantId},
        money::UsdMicros,
        run::{Cas, Run, RunState},
    },
    store::{Ending, Guard},
};

/// How often a run is judged anew that changed hands in between.
const JUDGED_MAX: usize = 4;

/// How long the answer waits for the gate to follow. If it is down, the sweep makes it follow later.
const SETTLE_MAX: Duration = Duration::from_millis(800);

/// What became of the wish.
#[derive(Debug)]
pub enum Cancel {
    /// The run has ended as CANCELLED; all of its hold is released.
    Done(Box<Run>),
    /// The run is in work and will stop soon.
    Requested(Box<Run>),
    /// The run has ended, or waits for a person.
    NotCancellable(Box<Run>),
    /// The run is past its retention.
    Gone,
    /// There is no such run of this tenant.
    Absent,
}

/// Cancels a tenant's run. Saying it again changes nothing.
///
/// A compare-and-set that is lost is not repeated: the run is another one by then (taken, handed back), and is
/// judged as what it has become.
///
/// # Errors
/// [`Error`]; say it again.
pub async fn cancel(cx: &Ctx, tenant_id: TenantId, run_id: RunId) -> Result<Cancel, Error> {
    for _ in 0..JUDGED_MAX {
        let run = match read::find(cx, tenant_id, run_id).await? {
            Found::Here(run) => run,
            Found::Gone => return Ok(Cancel::Gone),
            Found::Absent => return Ok(Cancel::Absent),
        };
        match run.state {
            RunState::Queued => {
                let guard = Guard { version: run.version, ..Guard::default() };
                let ending = Ending::Cancelled(UsdMicros::ZERO);
                let end = cx.store.end(run_id, tenant_id, run.trace_id, guard, ending);
                if let Cas::Won(settled) = cx.crash.at(CrashPoint::CancelEnd, end).await? {
                    let settle = finish::settle(cx, &settled, "CANCELLED", &run.pack_type);
                    if let Ok(settled) = tokio::time::timeout(SETTLE_MAX, settle).await {
                        settled?;
                    }
                    return Ok(match read::find(cx, tenant_id, run_id).await? {
                        Found::Here(run) => Cancel::Done(run),
                        Found::Gone | Found::Absent => Cancel::Gone,
                    });
                }
            }
            RunState::Processing { .. } | RunState::Claimed { .. } => {
                let request = cx.store.request_cancel(tenant_id, run_id);
                if let Cas::Won(()) = cx.crash.at(CrashPoint::CancelRequest, request).await? {
                    tracing::info!(trace_id = %run.trace_id, %run_id, %tenant_id, "cancellation requested");
                    return Ok(Cancel::Requested(run));
                }
            }
            RunState::AuditRequired { .. }
            | RunState::Completed { .. }
            | RunState::Failed { .. }
            | RunState::Expired { .. }
            | RunState::Cancelled { .. } => return Ok(Cancel::NotCancellable(run)),
        }
    }
    Err(Error::RunBusy)
}
