//! Wait: a request waits for its run to end. Nothing is decided here and nothing changed: what it is told in
//! the end it reads as every other request does.
//!
//! Entered among those who wait → looked at → woken → looked at. Nobody looks for one request alone: the gate
//! tells this process of every run that has ended, and one statement a second asks for all that somebody waits
//! for, whatever the gate said. So a hint that is lost costs a second, and a thousand who wait cost no more
//! than one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    Ctx, Detached, Error,
    read::{self, Found},
};
use crate::domain::id::{RunId, TenantId};

/// How often the books are asked for all that is waited for.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How many requests of one process may wait: all that they wait for is in that one statement.
const WAITS_MAX: usize = 4_096;

/// Who waits in this process for which runs. Clones share it.
#[derive(Clone)]
pub struct Waits {
    state: Arc<Mutex<State>>,
    look_interval: Duration,
    count_max: usize,
}

#[derive(Default)]
struct State {
    /// Those who wait for a run hold a receiver each.
    runs: HashMap<RunId, watch::Sender<()>>,
    waiting: usize,
    closed: bool,
}

impl Default for Waits {
    fn default() -> Self {
        Self::new(LOOK_INTERVAL, WAITS_MAX)
    }
}

impl Waits {
    /// None yet, and `count_max` at most; the books are asked every `look_interval`.
    pub fn new(look_interval: Duration, count_max: usize) -> Self {
        Self { state: Arc::default(), look_interval, count_max }
    }

    /// How many requests wait.
    pub fn count(&self) -> usize {
        self.state().waiting
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to wait, for as long as what is returned lives; `None` where too many do, or the process stops.
    fn enter(&self, run_id: RunId) -> Option<Waiting> {
        let mut state = self.state();
        if state.closed || state.waiting >= self.count_max {
            return None;
        }
        state.waiting += 1;
        metrics::gauge!("dpp_waits").increment(1);
        let woken = state.runs.entry(run_id).or_default().subscribe();
        Some(Waiting { waits: self.clone(), run_id, woken })
    }

    /// Lets whoever waits for a run look at it.
    fn wake(&self, run_id: RunId, by: &'static str) {
        if let Some(woken) = self.state().runs.get(&run_id) {
            woken.send_replace(());
            metrics::counter!("dpp_waits_woken_total", "by" => by).increment(1);
        }
    }

    /// Ends every wait, and lets none begin.
    fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.runs.clear();
    }
}

/// One request among those who wait.
struct Waiting {
    waits: Waits,
    run_id: RunId,
    woken: watch::Receiver<()>,
}

impl Waiting {
    /// Waits to be woken, since it was entered or woken last. `false` when no more waits are served.
    async fn woken(&mut self) -> bool {
        self.woken.changed().await.is_ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.waits.state();
        state.waiting -= 1;
        metrics::gauge!("dpp_waits").decrement(1);
        // Its own receiver is the last.
        if state.runs.get(&self.run_id).is_some_and(|woken| woken.receiver_count() <= 1) {
            state.runs.remove(&self.run_id);
        }
    }
}

/// What a wait came to.
#[derive(Debug)]
pub struct Waited {
    /// The run as it is now.
    pub found: Found,
    /// Whether it was waited for until it had ended, or for the whole time.
    pub in_full: bool,
}

/// Waits for a tenant's run to end, for at most `patience`; not for one that cannot be seen. Dropping it ends the
/// wait and nothing else.
///
/// # Errors
/// [`Error`]
pub async fn for_end(
    cx: &Arc<Ctx>,
    detached: &Detached,
    tenant_id: TenantId,
    run_id: RunId,
    patience: Duration,
) -> Result<Waited, Error> {
    let until = Instant::now() + patience;
    // Before the first look: what ends after it wakes this.
    let mut waiting = cx.waits.enter(run_id);
    loop {
        let reading = Arc::clone(cx);
        let found = detached.run(async move { read::find(&reading, tenant_id, run_id).await }).await;
        let found = found.map_err(Error::from).flatten()?;
        let open = matches!(&found, Found::Here(run) if !run.is_terminal());
        if !open || Instant::now() >= until {
            return Ok(Waited { found, in_full: true });
        }
        let Some(waiting) = &mut waiting else { return Ok(Waited { found, in_full: false }) };
        if let Ok(false) = timeout_at(until, waiting.woken()).await {
            return Ok(Waited { found, in_full: false });
        }
    }
}

/// Wakes those who wait, until `stop`; then ends their waits.
pub async fn run(cx: Arc<Ctx>, stop: CancellationToken) {
    let hear = cx.budget.hear_endings(|run_id| cx.waits.wake(run_id, "hint"));
    tokio::select! {
        () = stop.cancelled() => {}
        _ = hear => {}
        () = look(&cx) => {}
    }
    cx.waits.close();
}

async fn look(cx: &Ctx) {
    let mut ticks = interval(cx.waits.look_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let runs: Vec<_> = cx.waits.state().runs.keys().copied().collect();
        if runs.is_empty() {
            continue;
        }
        match cx.store.ended_among(&runs).await {
            Ok(ended) => ended.into_iter().for_each(|run_id| cx.waits.wake(run_id, "look")),
            Err(error) => {
                tracing::warn!(
                    error = format!("{:#}", anyhow::Error::from(error)),
                    "cannot look for ended runs"
                );
            }
        }
    }
}
