//! What can go wrong with the database, by what the caller can do about it.

use diesel::result::{DatabaseErrorKind, Error as DieselError};

/// A failed operation on the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database could not be reached or did not answer in time. A write may have been applied.
    #[error("the database is unavailable")]
    Unavailable(#[source] anyhow::Error),
    /// A named constraint refused the write; nothing was changed.
    #[error("the constraint {0} refuses this")]
    Refused(String),
    /// A row holds what no code of this version writes.
    #[error("corrupt row in {table}: {detail}")]
    Corrupt {
        /// Where.
        table: &'static str,
        /// Which row, and what is wrong with it.
        detail: String,
    },
    /// A statement failed for a reason that no caller can mend.
    #[error("a statement failed")]
    Query(#[source] anyhow::Error),
}

impl From<DieselError> for Error {
    fn from(error: DieselError) -> Self {
        match error {
            DieselError::DatabaseError(
                DatabaseErrorKind::UniqueViolation
                | DatabaseErrorKind::ForeignKeyViolation
                | DatabaseErrorKind::CheckViolation,
                ref info,
            ) => Self::Refused(info.constraint_name().unwrap_or("(unnamed)").to_owned()),
            // A server that stops, a cut connection, a statement or lock that took too long: all of
            // them come as unnamed database errors, and all of them pass.
            DieselError::DatabaseError(kind, ref info) if passes(&kind, info.message()) => {
                Self::Unavailable(error.into())
            }
            DieselError::BrokenTransactionManager => Self::Unavailable(error.into()),
            other => Self::Query(other.into()),
        }
    }
}

fn passes(kind: &DatabaseErrorKind, message: &str) -> bool {
    const PASSING: [&str; 14] = [
        "deadlock detected",
        "connection closed",
        "terminating connection",
        "error communicating with the server",
        "the database system is",
        "statement timeout",
        "lock timeout",
        "canceling statement",
        "too many clients",
        "remaining connection slots",
        "the connection is closed",
        "broken pipe",
        "connection reset",
        "unexpected eof",
    ];
    matches!(
        kind,
        DatabaseErrorKind::ClosedConnection
            | DatabaseErrorKind::SerializationFailure
            // A standby that was a primary: its connections are closed, and the next finds another.
            | DatabaseErrorKind::ReadOnlyTransaction
    ) || PASSING.iter().any(|text| message.to_lowercase().contains(text))
}
