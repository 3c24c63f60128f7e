//! Resolve: a person ends what no rule could, and the ledger says by whose word.

use super::{Ctx, Error, crash::CrashPoint, finish};
use crate::{
    domain::{
        id::RunId,
        money::UsdMicros,
        run::{Cas, Reason, Run, RunState},
    },
    store::{Ending, Guard},
};

/// What became of it.
#[derive(Debug)]
pub enum Resolved {
    /// The run has ended as FAILED, at this charge; the rest of its hold is released.
    Ended(Box<Run>),
    /// There is no such run.
    Absent,
    /// The run does not wait for a person.
    NotWaiting(Box<Run>),
    /// The charge is above the hold.
    AboveHold {
        /// The hold.
        reserved: UsdMicros,
    },
}

/// Ends a run that waits in AUDIT_REQUIRED, at `charge`, for `reason`. Nothing that was booked is changed:
/// the hold ends as every hold does, in a charge and a release.
///
/// # Errors
/// [`Error`]; try again.
pub async fn resolve(cx: &Ctx, run_id: RunId, charge: UsdMicros, reason: &str) -> Result<Resolved, Error> {
    let Some(run) = cx.store.find_run(run_id).await? else { return Ok(Resolved::Absent) };
    let RunState::AuditRequired { claim, .. } = &run.state else {
        return Ok(Resolved::NotWaiting(Box::new(run)));
    };
    if charge > run.reserved {
        return Ok(Resolved::AboveHold { reserved: run.reserved });
    }
    let guard = Guard {
        version: run.version,
        finalize_token: Some(claim.token),
        awaits_audit: true,
        ..Guard::default()
    };
    let reason = Reason { code: "resolved_by_operator".to_owned(), detail: reason.to_owned() };
    let end = cx.store.end(run.run_id, run.tenant_id, run.trace_id, guard, Ending::Failed(charge, reason));
    let ended = cx.crash.at(CrashPoint::ResolveEnd, end).await?;
    if let Cas::Won(settled) = &ended {
        finish::settle(cx, settled, "FAILED", &run.pack_type).await?;
    }
    let now = cx.store.find_run(run_id).await?;
    Ok(match (ended, now) {
        (Cas::Won(_), Some(run)) => Resolved::Ended(Box::new(run)),
        (Cas::Lost, Some(run)) => Resolved::NotWaiting(Box::new(run)),
        (_, None) => Resolved::Absent,
    })
}
