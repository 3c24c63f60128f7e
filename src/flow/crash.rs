//! Every effect that a flow has on the world, by name, so that a test can make it fail in each of the
//! ways in which the world fails: the process dies before it or after it, its answer is lost though it
//! was applied, or it fails and was not applied.
//!
//! In release builds [`Crash::at`] is the effect itself and nothing else.

/// One call that changes something outside the process. Between any two of them a process may die.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CrashPoint {
    /// The gate holds the amount.
    SubmitReserve,
    /// The run and its hold are written.
    SubmitInsert,
    /// The message is sent.
    SubmitSend,
    /// A reservation that lost its key to another submit's run is let go.
    SubmitLetGo,
    /// Messages are received, and hidden from others.
    TakeReceive,
    /// Runs are leased.
    TakeLease,
    /// A message that gave no work is deleted.
    TakeDelete,
    /// A message that is not ours is moved to the dead-letter queue.
    TakeBury,
    /// Leases are renewed.
    BeatRenew,
    /// The messages of leased runs are kept hidden.
    BeatHide,
    /// The right to upload and finish is claimed.
    FinishClaim,
    /// The result and its receipt are put.
    FinishPut,
    /// The run ends as COMPLETED, and its hold with it.
    FinishEnd,
    /// The run ends as FAILED by its inputs or its pack, and its hold with it.
    FailEnd,
    /// The run ends as CANCELLED in its worker's hands, and its hold with it.
    StopEnd,
    /// The gate learns of an end, whoever made it.
    Settle,
    /// The message of a run that has ended is deleted.
    FinishDelete,
    /// A leased run goes back unfinished.
    HandBackRequeue,
    /// The message of a run that was handed back is shown again.
    HandBackShow,
    /// A lost attempt goes back to the queue.
    ExpireRequeue,
    /// A run that was lost too often, or waited too long, ends.
    ExpireEnd,
    /// A stale claim is rolled forward.
    ReconcileEnd,
    /// A contradiction is parked for a person.
    ReconcilePark,
    /// Runs whose message is due are marked for their next time.
    ResendMark,
    /// A message is sent again.
    ResendSend,
    /// The next sending of a message that was sent is put off.
    ResendPutOff,
    /// The epoch is raised.
    RebuildRaise,
    /// The gate is set.
    RebuildSet,
    /// The epoch is committed.
    RebuildCommit,
    /// A deposit is posted, and the epoch ended.
    DepositPost,
    /// The deposit is committed.
    DepositCommit,
    /// A snapshot of the ledger is written.
    SnapshotWrite,
    /// The snapshot is committed.
    SnapshotCommit,
    /// A run's objects are deleted.
    RetainPurge,
    /// A run's inputs are deleted.
    RetainMark,
    /// The gate learns of an end that it had missed.
    SweepSettle,
    /// A person ends a contradiction.
    ResolveEnd,
    /// A waiting run ends as CANCELLED, and its hold with it.
    CancelEnd,
    /// A buyer's wish that a run in work stop is written down.
    CancelRequest,
}

impl CrashPoint {
    /// All of them.
    pub const ALL: [Self; 39] = [
        Self::SubmitReserve,
        Self::SubmitInsert,
        Self::SubmitSend,
        Self::SubmitLetGo,
        Self::TakeReceive,
        Self::TakeLease,
        Self::TakeDelete,
        Self::TakeBury,
        Self::BeatRenew,
        Self::BeatHide,
        Self::FinishClaim,
        Self::FinishPut,
        Self::FinishEnd,
        Self::FailEnd,
        Self::StopEnd,
        Self::Settle,
        Self::FinishDelete,
        Self::HandBackRequeue,
        Self::HandBackShow,
        Self::ExpireRequeue,
        Self::ExpireEnd,
        Self::ReconcileEnd,
        Self::ReconcilePark,
        Self::ResendMark,
        Self::ResendSend,
        Self::ResendPutOff,
        Self::RebuildRaise,
        Self::RebuildSet,
        Self::RebuildCommit,
        Self::DepositPost,
        Self::DepositCommit,
        Self::SnapshotWrite,
        Self::SnapshotCommit,
        Self::RetainPurge,
        Self::RetainMark,
        Self::SweepSettle,
        Self::ResolveEnd,
        Self::CancelEnd,
        Self::CancelRequest,
    ];
}

/// An error that can say: this was not answered, and may or may not have been applied.
pub trait Outage {
    /// The service is away; `cause` says how it showed.
    fn outage(cause: anyhow::Error) -> Self;
}

impl Outage for crate::store::Error {
    fn outage(cause: anyhow::Error) -> Self {
        Self::Unavailable(cause)
    }
}

impl Outage for crate::budget::Error {
    fn outage(cause: anyhow::Error) -> Self {
        Self::Unavailable(cause)
    }
}

impl Outage for crate::queue::Error {
    fn outage(cause: anyhow::Error) -> Self {
        Self::Unavailable(cause)
    }
}

impl Outage for crate::results::Error {
    fn outage(cause: anyhow::Error) -> Self {
        Self::Unavailable(cause)
    }
}

#[cfg(debug_assertions)]
mod armed {
    use std::{
        collections::BTreeSet,
        fmt,
        sync::{Arc, Mutex, MutexGuard, PoisonError},
    };

    use tokio::sync::oneshot;

    use super::{CrashPoint, Outage};

    /// How the world fails at an effect.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Fault {
        /// The flow dies before it, and with the flow everything that it had in hand.
        DiesBefore,
        /// The flow dies after it.
        DiesAfter,
        /// It is applied, and the flow is told of an outage.
        AnswerLost,
        /// It is not applied, and the flow is told of an outage.
        NotApplied,
    }

    impl Fault {
        /// All of them.
        pub const ALL: [Self; 4] = [Self::DiesBefore, Self::DiesAfter, Self::AnswerLost, Self::NotApplied];
    }

    /// What a dead flow unwinds with. Nothing catches it on the way but what would outlive the process.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Died(pub CrashPoint);

    impl fmt::Display for Died {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "the flow was made to die at {:?}", self.0)
        }
    }

    enum Armed {
        Fault { at: CrashPoint, fault: Fault, whole_process: bool },
        Pause { at: CrashPoint, reached: oneshot::Sender<()>, go_on: oneshot::Receiver<()> },
    }

    impl Armed {
        fn at(&self) -> CrashPoint {
            match self {
                Self::Fault { at, .. } | Self::Pause { at, .. } => *at,
            }
        }
    }

    #[derive(Default)]
    struct State {
        armed: Vec<Armed>,
        passed: BTreeSet<CrashPoint>,
    }

    /// What is armed of this process's flows.
    #[derive(Clone, Default)]
    pub struct Crash(Arc<Mutex<State>>);

    /// A flow that was made to wait before an effect.
    pub struct Paused {
        reached: oneshot::Receiver<()>,
        go_on: oneshot::Sender<()>,
    }

    impl Paused {
        /// Waits until a flow is there. It stays until [`Waiting::go_on`].
        pub async fn reached(self) -> Waiting {
            // A sender that was dropped is a point that was disarmed.
            drop(self.reached.await);
            Waiting(self.go_on)
        }
    }

    /// A flow that waits before an effect.
    pub struct Waiting(oneshot::Sender<()>);

    impl Waiting {
        /// Lets it go on.
        pub fn go_on(self) {
            // One that has died meanwhile goes nowhere.
            let _ = self.0.send(());
        }
    }

    impl Crash {
        fn state(&self) -> MutexGuard<'_, State> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }

        /// The next flow that comes to `at` meets `fault` there.
        pub fn arm(&self, at: CrashPoint, fault: Fault) {
            self.state().armed.push(Armed::Fault { at, fault, whole_process: false });
        }

        /// Arms what the environment's `DPP_CRASH_AT` names, such as `before SubmitSend`, for tests of real
        /// processes: all of it is gone at once, as by `kill -9`.
        pub fn arm_by_name(&self, name: &str) -> bool {
            let found = CrashPoint::ALL.into_iter().find_map(|at| {
                let fault = match name.split_once(' ') {
                    Some(("before", point)) if point == format!("{at:?}") => Fault::DiesBefore,
                    Some(("after", point)) if point == format!("{at:?}") => Fault::DiesAfter,
                    _ => return None,
                };
                Some(Armed::Fault { at, fault, whole_process: true })
            });
            let known = found.is_some();
            self.state().armed.extend(found);
            known
        }

        /// The next flow that comes to `at` waits there until it is told to go on.
        pub fn pause(&self, at: CrashPoint) -> Paused {
            let (reached_by, reached) = oneshot::channel();
            let (go_on, told) = oneshot::channel();
            self.state().armed.push(Armed::Pause { at, reached: reached_by, go_on: told });
            Paused { reached, go_on }
        }

        /// No point is armed any more.
        pub fn disarm(&self) {
            self.state().armed.clear();
        }

        /// Whether no point is armed (any more).
        pub fn fired(&self) -> bool {
            self.state().armed.is_empty()
        }

        /// The effects that flows have come to since this was last asked.
        pub fn passed(&self) -> BTreeSet<CrashPoint> {
            std::mem::take(&mut self.state().passed)
        }

        /// Has the effect, or the fault that is armed here.
        ///
        /// # Errors
        /// The effect's own, and [`Outage`] where a fault says so.
        ///
        /// # Panics
        /// Unwinds with [`Died`] where the flow is to die.
        pub async fn at<T, E: Outage>(
            &self,
            at: CrashPoint,
            effect: impl Future<Output = Result<T, E>>,
        ) -> Result<T, E> {
            // Awaited in several places below, and stored once.
            let effect = Box::pin(effect);
            let armed = {
                let mut state = self.state();
                state.passed.insert(at);
                let armed = state.armed.iter().position(|armed| armed.at() == at);
                armed.map(|index| state.armed.remove(index))
            };
            let (fault, whole_process) = match armed {
                None => return effect.await,
                Some(Armed::Pause { reached, go_on, .. }) => {
                    let _ = reached.send(());
                    drop(go_on.await);
                    return effect.await;
                }
                Some(Armed::Fault { fault, whole_process, .. }) => (fault, whole_process),
            };
            let die = || -> ! {
                if whole_process {
                    std::process::abort();
                }
                // Without the panic hook: this is no bug to report.
                std::panic::resume_unwind(Box::new(Died(at)))
            };
            match fault {
                Fault::DiesBefore => die(),
                Fault::DiesAfter => {
                    drop(effect.await);
                    die()
                }
                Fault::AnswerLost => {
                    drop(effect.await);
                    Err(E::outage(anyhow::anyhow!("the answer at {at:?} was lost")))
                }
                Fault::NotApplied => Err(E::outage(anyhow::anyhow!("the call at {at:?} was lost"))),
            }
        }
    }
}

#[cfg(debug_assertions)]
pub use armed::{Crash, Died, Fault, Paused, Waiting};

/// Nothing can be armed in release builds.
#[cfg(not(debug_assertions))]
#[derive(Clone, Default)]
pub struct Crash;

#[cfg(not(debug_assertions))]
impl Crash {
    /// The effect itself.
    #[inline]
    pub fn at<F>(&self, _: CrashPoint, effect: F) -> F {
        effect
    }
}
