//! A process's life: one owner of its signals and of its tasks.
//!
//! The first SIGTERM or SIGINT asks tasks to end (*soft*); when the grace has passed, what is still
//! open is told to stop (*hard*). A second signal ends the process at once.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::flow::{self, Detached};

/// How long tasks may take to obey *hard*: handing leases back is a few statements.
const HARD_GRACE: Duration = Duration::from_secs(10);

/// Tasks, and the tokens that end them.
#[derive(Clone)]
pub struct Lifecycle {
    soft: CancellationToken,
    hard: CancellationToken,
    tasks: TaskTracker,
    failed: Arc<AtomicBool>,
    grace: Duration,
}

impl Lifecycle {
    /// A life whose tasks have `grace` to end.
    pub fn new(grace: Duration) -> Self {
        Self {
            soft: CancellationToken::new(),
            hard: CancellationToken::new(),
            tasks: TaskTracker::new(),
            failed: Arc::default(),
            grace,
        }
    }

    /// Cancelled when tasks should end.
    pub fn soft(&self) -> CancellationToken {
        self.soft.clone()
    }

    /// Cancelled when tasks must stop.
    pub fn hard(&self) -> CancellationToken {
        self.hard.clone()
    }

    /// How long open work may take to end.
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// Where flows run to their end; shutdown waits for them.
    pub fn detached(&self) -> Detached {
        Detached::new(tokio::runtime::Handle::current(), self.tasks.clone(), flow::ANSWER_MAX)
    }

    /// Runs a task that ends only when asked. One that ends by itself ends the process, with a
    /// failure.
    pub fn run<T: std::fmt::Debug>(
        &self,
        name: &'static str,
        task: impl Future<Output = T> + Send + 'static,
    ) {
        let life = self.clone();
        self.tasks.spawn(async move {
            let ended = format!("{:?}", flow::survive(task).await);
            if !life.soft.is_cancelled() {
                tracing::error!(task = name, ended, "a task ended by itself; stopping");
                life.failed.store(true, Ordering::Relaxed);
                life.soft.cancel();
            }
        });
    }

    /// Waits for a signal, then for the tasks. `true` when all went well.
    ///
    /// # Errors
    /// When signals cannot be heard.
    pub async fn wait(self) -> std::io::Result<bool> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = self.soft.cancelled() => {}
        }
        tracing::info!(grace_secs = self.grace.as_secs(), "stopping: open work may end");
        self.soft.cancel();
        self.tasks.close();
        let end = async {
            if tokio::time::timeout(self.grace, self.tasks.wait()).await.is_err() {
                tracing::warn!("the grace has passed: open work is handed back");
                self.hard.cancel();
                if tokio::time::timeout(HARD_GRACE, self.tasks.wait()).await.is_err() {
                    tracing::error!("some tasks did not obey; leaving them");
                }
            }
        };
        tokio::select! {
            () = end => {}
            _ = terminate.recv() => tracing::warn!("second signal: stopping at once"),
            _ = interrupt.recv() => tracing::warn!("second signal: stopping at once"),
        }
        Ok(!self.failed.load(Ordering::Relaxed))
    }
}

/// Waits for a signal that asks the process to end.
///
/// # Errors
/// When signals cannot be heard.
pub async fn interrupted() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
