//! Poll: a request that is no new run, counted at the gate.

use super::{Ctx, Error};
use crate::{budget::Poll, domain::plan::Caller};

/// Counts a request of a caller. Money does not depend on it.
///
/// # Errors
/// [`Error`]; it may be counted.
pub async fn count(cx: &Ctx, caller: &Caller) -> Result<Poll, Error> {
    let per_minute = caller.plan.polls_per_minute;
    Ok(cx.budget.poll(caller.tenant_id, per_minute, caller.key_limits.as_ref()).await?)
}
