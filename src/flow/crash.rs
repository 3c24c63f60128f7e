//! Every instant between two effects, by name, so that a test can make a process die there.
//!
//! In release builds [`Crash::at`] is an empty function.

use std::fmt;

/// An instant between two effects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CrashPoint {
    /// The gate holds the amount; the run is not written.
    SubmitAfterGate,
    /// The run and its hold are written; no message is sent.
    SubmitAfterCommit,
    /// The message is sent; the client has no answer.
    SubmitAfterSend,
    /// Runs are leased; no pack has begun.
    TakeAfterLease,
    /// The pack is done; the claim is not made.
    FinishBeforeClaim,
    /// The claim is made; nothing is uploaded.
    FinishAfterClaim,
    /// The object lies in S3; the run has not ended.
    FinishAfterUpload,
    /// The run and its hold have ended; the gate does not know.
    FinishAfterCommit,
    /// The gate knows; the message is not deleted.
    FinishAfterSettle,
    /// The deposit is in the books; the gate does not know.
    DepositAfterCommit,
    /// The epoch is raised, nothing is set or committed.
    RebuildAfterRaise,
    /// The gate is set; the epoch is not committed.
    RebuildAfterSet,
    /// A lost run has ended; the gate does not know.
    ExpireAfterCommit,
    /// A run's objects are deleted; its inputs are not.
    RetainAfterPurge,
}

impl CrashPoint {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::SubmitAfterGate,
        Self::SubmitAfterCommit,
        Self::SubmitAfterSend,
        Self::TakeAfterLease,
        Self::FinishBeforeClaim,
        Self::FinishAfterClaim,
        Self::FinishAfterUpload,
        Self::FinishAfterCommit,
        Self::FinishAfterSettle,
        Self::DepositAfterCommit,
        Self::RebuildAfterRaise,
        Self::RebuildAfterSet,
        Self::ExpireAfterCommit,
        Self::RetainAfterPurge,
    ];
}

/// The flow died here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crashed(pub CrashPoint);

impl fmt::Display for Crashed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the flow was made to die at {:?}", self.0)
    }
}

impl std::error::Error for Crashed {}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::{Arc, Mutex, PoisonError};

    use super::{CrashPoint, Crashed};

    /// Arms one point of this process's flows.
    #[derive(Clone, Default)]
    pub struct Crash(Arc<Mutex<Option<(CrashPoint, Death)>>>);

    /// How to die.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Death {
        /// The flow stops, and with it everything that it had in hand.
        Flow,
        /// The process is gone at once, as by `kill -9`.
        Process,
    }

    impl Crash {
        /// The next flow that comes to `point` dies there.
        pub fn arm(&self, point: CrashPoint, death: Death) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((point, death));
        }

        /// Arms the point that the environment's `DPP_CRASH_AT` names, for tests of real processes.
        pub fn arm_by_name(&self, name: &str) -> bool {
            let point = CrashPoint::ALL.into_iter().find(|point| format!("{point:?}") == name);
            if let Some(point) = point {
                self.arm(point, Death::Process);
            }
            point.is_some()
        }

        /// No point is armed any more.
        pub fn disarm(&self) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }

        /// Whether no point is armed (any more).
        pub fn fired(&self) -> bool {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).is_none()
        }

        /// Dies here, if armed.
        ///
        /// # Errors
        /// [`Crashed`]
        pub fn at(&self, point: CrashPoint) -> Result<(), Crashed> {
            let mut armed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match *armed {
                Some((at, death)) if at == point => {
                    *armed = None;
                    match death {
                        Death::Flow => Err(Crashed(point)),
                        Death::Process => std::process::abort(),
                    }
                }
                _ => Ok(()),
            }
        }
    }
}

#[cfg(debug_assertions)]
pub use armed::{Crash, Death};

/// Does nothing in release builds.
#[cfg(not(debug_assertions))]
#[derive(Clone, Default)]
pub struct Crash;

#[cfg(not(debug_assertions))]
impl Crash {
    /// Does nothing in release builds.
    ///
    /// # Errors
    /// Never.
    #[inline]
    pub fn at(&self, _: CrashPoint) -> Result<(), Crashed> {
        Ok(())
    }
}
