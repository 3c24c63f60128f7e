//! Limits of requests: who counts, and what answers tell of it, in the fields RateLimit-Policy and RateLimit
//! (draft-ietf-httpapi-ratelimit-headers-10).

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use actix_web::{
    HttpMessage as _, HttpRequest,
    http::header::{HeaderMap, HeaderName, HeaderValue},
};
use tokio::time::Instant;

use super::{
    App,
    problem::{Problem, secs_up},
};
use crate::{
    budget::Poll,
    domain::{
        limit::{Counted, Of, Quota, WINDOW},
        plan::Caller,
    },
    flow,
};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LEFT: HeaderName = HeaderName::from_static("ratelimit");
/// How long requests go uncounted after the gate could not count one: its outage is not to slow reads down.
const UNCOUNTED: Duration = Duration::from_secs(1);

/// Since when the gate cannot count.
#[derive(Default)]
pub struct Outage(Mutex<Option<Instant>>);

impl Outage {
    fn lasts(&self) -> bool {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() < UNCOUNTED)
    }

    fn begins(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

/// What an answer tells: the limits that apply, and what is left of them where that is known.
#[derive(Clone, Default)]
struct Told {
    policies: Vec<Quota>,
    left: Vec<Quota>,
}

/// Counts a request that is no new run. What cannot be counted now is let through: reads work without the gate.
///
/// # Errors
/// [`Problem`] when it is one too many.
pub async fn count(app: &App, request: &HttpRequest, caller: &Caller) -> Result<(), Problem> {
    apply(request, caller, Counted::Polls);
    if caller.quotas(Counted::Polls).is_empty() || app.uncounted.lasts() {
        return Ok(());
    }
    let (cx, caller) = (app.cx.clone(), caller.clone());
    let counted = app.detached.run(async move { flow::poll::count(&cx, &caller).await }).await;
    match counted.map_err(flow::Error::from).flatten() {
        Ok(Poll::Taken(quotas)) => {
            left(request, quotas);
            Ok(())
        }
        Ok(Poll::Limited(quota)) => {
            left(request, vec![quota]);
            Err(Problem::rate_limited(&quota))
        }
        Err(error) => {
            app.uncounted.begins();
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::debug!(error, "requests cannot be counted");
            Ok(())
        }
    }
}

/// Says which limits apply to a request.
pub fn apply(request: &HttpRequest, caller: &Caller, counted: Counted) {
    request.extensions_mut().insert(Told { policies: caller.quotas(counted), left: Vec::new() });
}

/// Says what is left of them.
pub fn left(request: &HttpRequest, quotas: Vec<Quota>) {
    if let Some(told) = request.extensions_mut().get_mut::<Told>() {
        told.left = quotas;
    }
}

/// Writes an answer's fields.
pub fn tell(request: &HttpRequest, answer: &mut HeaderMap) {
    let told = request.extensions().get::<Told>().cloned().unwrap_or_default();
    let policy = |quota: &Quota| format!("\"{}\";q={};w={}", quota.name(), quota.max, WINDOW.as_secs());
    let left = |quota: &Quota| format!("\"{}\";r={};t={}", quota.name(), quota.left, secs_up(quota.more_in));
    let mut write = |name, items: Vec<String>| {
        if let Some(value) = HeaderValue::from_str(&items.join(", ")).ok().filter(|_| !items.is_empty()) {
            answer.insert(name, value);
        }
    };
    write(POLICY, told.policies.iter().map(policy).collect());
    write(LEFT, told.left.iter().map(left).collect());
}

impl Caller {
    /// The limits of requests of a kind that this caller has, unused.
    fn quotas(&self, counted: Counted) -> Vec<Quota> {
        let key = self.key_limits.as_ref();
        let (tenants, keys) = match counted {
            Counted::Runs => (self.plan.runs_per_minute, key.map_or(0, |key| key.runs_per_minute)),
            Counted::Polls => (self.plan.polls_per_minute, key.map_or(0, |key| key.polls_per_minute)),
        };
        [(Of::Tenant, tenants), (Of::Key, keys)]
            .into_iter()
            .filter(|(_, max)| *max > 0)
            .map(|(of, max)| Quota { of, counted, max, left: max, more_in: WINDOW })
            .collect()
    }
}
