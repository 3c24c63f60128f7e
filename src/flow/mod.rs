//! Use cases, one a file: the order of effects. Each reads top to bottom as the protocol in
//! `docs/ARCHITECTURE.md`.
//!
//! A flow gathers facts, asks `domain` for the verdict and obeys. It may die between any two of its
//! lines; [`crash`] names those effects, and what is left between them is always repairable by
//! [`expire`], [`reconcile`], [`resend`] or [`sweep`].

pub mod audit;
pub mod budget;
pub mod cancel;
pub mod crash;
pub mod deposit;
pub mod expire;
pub mod finish;
pub mod keys;
pub mod list;
pub mod operator;
pub mod plans;
pub mod poll;
pub mod probe;
pub mod read;
pub mod rebuild;
pub mod reconcile;
pub mod resend;
pub mod resolve;
pub mod retain;
pub mod snapshot;
pub mod submit;
pub mod sweep;
pub mod take;
pub mod tenants;
pub mod usage;
pub mod wait;

use std::{future::Future, time::Duration};

use futures::FutureExt as _;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::{budget::Budget, config::Pace, pack::Registry, queue::Queue, results::Results, store::Store};

/// Everything that a flow acts on.
#[derive(Clone)]
pub struct Ctx {
    /// PostgreSQL: the truth.
    pub store: Store,
    /// Redis: the gate.
    pub budget: Budget,
    /// SQS: the queue.
    pub queue: Queue,
    /// S3: the results.
    pub results: Results,
    /// The packs.
    pub packs: Registry,
    /// How the roles keep time.
    pub pace: Pace,
    /// Who waits here for runs to end.
    pub waits: wait::Waits,
    /// Where tests make a flow die.
    pub crash: crash::Crash,
}

/// Why a flow could not be completed. What it had done so far is repairable.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database is down or slow.
    #[error(transparent)]
    Store(#[from] crate::store::Error),
    /// The gate is down or slow.
    #[error(transparent)]
    Budget(#[from] crate::budget::Error),
    /// The queue is down or slow.
    #[error(transparent)]
    Queue(#[from] crate::queue::Error),
    /// The result store is down, slow, or holds something else.
    #[error(transparent)]
    Results(#[from] crate::results::Error),
    /// A budget is being rebuilt over and over; somebody else is at it.
    #[error("the tenant's budget is being rebuilt")]
    BudgetBusy,
    /// The run changed each time that it was looked at.
    #[error("the run is changing hands")]
    RunBusy,
    /// The database went away with a submit in hand: the run may or may not exist.
    #[error("a submit's outcome is unknown")]
    OutcomeUnknown(#[source] anyhow::Error),
    /// The flow panicked.
    #[error(transparent)]
    Panicked(#[from] Panicked),
    /// The flow takes too long to wait for, and goes on.
    #[error("a flow takes too long, and goes on")]
    TooSlow,
}

impl Error {
    /// Whether trying again later may help.
    pub fn passes(&self) -> bool {
        match self {
            Self::Store(error) => matches!(error, crate::store::Error::Unavailable(_)),
            Self::Budget(error) => matches!(error, crate::budget::Error::Unavailable(_)),
            Self::Results(error) => matches!(error, crate::results::Error::Unavailable(_)),
            Self::Queue(_) | Self::BudgetBusy | Self::RunBusy | Self::OutcomeUnknown(_) | Self::TooSlow => {
                true
            }
            Self::Panicked(_) => false,
        }
    }
}

/// What a pass of the reaper met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rows that looked due.
    pub found: u64,
    /// Of those, changed.
    pub changed: u64,
    /// Of those, changed by somebody else first.
    pub lost: u64,
    /// Of those, left as they are because something was down or unknown.
    pub failed: u64,
}

impl Tally {
    /// Adds another tally to this.
    pub fn add(&mut self, other: Self) {
        self.found += other.found;
        self.changed += other.changed;
        self.lost += other.lost;
        self.failed += other.failed;
    }

    /// Counts one row by what became of it.
    pub(crate) fn count(&mut self, outcome: &Result<Changed, Error>) {
        self.found += 1;
        match outcome {
            Ok(Changed::Yes) => self.changed += 1,
            Ok(Changed::Lost) => self.lost += 1,
            Ok(Changed::NotYet) | Err(_) => self.failed += 1,
        }
    }
}

/// What became of one row in a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It was changed.
    Yes,
    /// Somebody else was first.
    Lost,
    /// It cannot be judged now.
    NotYet,
}

/// How long a request waits for its flow. Whatever a flow waits for has limits of its own, which add up to
/// more; a client is to have an answer within two seconds all the same.
pub const ANSWER_MAX: Duration = Duration::from_millis(1_800);

/// Runs flows to their end, whatever becomes of the request that began them: actix drops a handler
/// whose client resets the connection, and money must not stop halfway. All pools live on this one
/// runtime. Shutdown waits for what runs here.
#[derive(Clone)]
pub struct Detached {
    runtime: Handle,
    tasks: TaskTracker,
    answer_max: Duration,
}

/// Why nothing was heard from a flow.
#[derive(Debug)]
pub enum NoAnswer {
    /// It panicked.
    Panicked,
    /// It takes too long to wait for, and goes on.
    TooSlow,
}

impl From<NoAnswer> for Error {
    fn from(none: NoAnswer) -> Self {
        match none {
            NoAnswer::Panicked => Self::Panicked(Panicked),
            NoAnswer::TooSlow => Self::TooSlow,
        }
    }
}

/// What was run panicked.
#[derive(Debug, thiserror::Error)]
#[error("a flow panicked")]
pub struct Panicked;

/// Runs one round of what must go on whatever becomes of that round.
///
/// # Errors
/// [`Panicked`]
pub fn survive<T>(round: impl Future<Output = T>) -> impl Future<Output = Result<T, Panicked>> {
    let round = std::panic::AssertUnwindSafe(Box::pin(round)).catch_unwind();
    async move { round.await.ok().ok_or(Panicked) }
}

impl Detached {
    /// Runs flows on `runtime`, counted by `tasks`, and waits for each for at most `answer_max`.
    pub fn new(runtime: Handle, tasks: TaskTracker, answer_max: Duration) -> Self {
        Self { runtime, tasks, answer_max }
    }

    /// Begins `flow` at once; what is returned waits for its end. Dropping the wait does not stop the
    /// flow.
    ///
    /// # Errors
    /// [`NoAnswer`]
    pub fn run<T, F>(&self, flow: F) -> impl Future<Output = Result<T, NoAnswer>> + use<T, F>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let running = self.tasks.spawn_on(flow, &self.runtime);
        let until = tokio::time::Instant::now() + self.answer_max;
        async move {
            let answer = tokio::time::timeout_at(until, running).await.ok().ok_or(NoAnswer::TooSlow)?;
            answer.ok().ok_or(NoAnswer::Panicked)
        }
    }
}
