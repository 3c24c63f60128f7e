//! Operators: who asks for a change that no tenant may ask for, and why it is not made. The command line and
//! the admin API say the same of both.

use super::Error;
use crate::{
    domain::{id::TraceId, money::UsdMicros},
    pack::FieldError,
};

/// Whoever changes something. Each change is logged once, with this and with ids, and never with a secret.
#[derive(Clone, Copy, Debug)]
pub enum Operator {
    /// Somebody at a shell.
    Cli,
    /// Whoever holds the admin token, in a request of this trace.
    Api(TraceId),
}

impl Operator {
    /// The door that they came through, for the log.
    pub fn door(self) -> &'static str {
        match self {
            Self::Cli => "cli",
            Self::Api(_) => "api",
        }
    }

    /// The trace of their request, for the log.
    pub fn trace_id(self) -> Option<impl tracing::Value> {
        match self {
            Self::Cli => None,
            Self::Api(trace_id) => Some(tracing::field::display(trace_id)),
        }
    }
}

/// Why an operator's wish was not granted. Unless it [`Refused::Failed`], nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// These fields are wrong; a pointer names a field as the admin API does.
    #[error("{}", .0.iter().map(|error| format!("{}: {}", error.pointer, error.detail)).collect::<Vec<_>>().join("; "))]
    Fields(Vec<FieldError>),
    /// There is no such tenant.
    #[error("there is no such tenant")]
    NoTenant,
    /// There is no plan of this name.
    #[error("there is no plan {0:?}")]
    NoPlan(String),
    /// The key was used to make another tenant.
    #[error("this key was used to make another tenant before; nothing changed")]
    KeyReused,
    /// The reference was used for another amount.
    #[error("reference {reference:?} was used for a deposit of ${amount} before; nothing changed")]
    ReferenceReused {
        /// The reference.
        reference: String,
        /// What was deposited under it.
        amount: UsdMicros,
    },
    /// The tenant's deposits would pass what one tenant's books hold.
    #[error(
        "${deposited} is deposited, and a tenant's deposits may not pass ${}; nothing changed",
        UsdMicros::MAX
    )]
    AboveMaximum {
        /// What is deposited now.
        deposited: UsdMicros,
    },
    /// Something is down; on an error that passes the change may have been made.
    #[error(transparent)]
    Failed(Error),
}

impl<E: Into<Error>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// The error of one field.
pub(super) fn wrong(pointer: &str, right: impl Into<String>) -> FieldError {
    FieldError { pointer: pointer.to_owned(), detail: right.into() }
}

/// Refuses where a field is wrong.
///
/// # Errors
/// [`Refused::Fields`] with all of them.
pub(super) fn judged(errors: impl IntoIterator<Item = FieldError>) -> Result<(), Refused> {
    let errors: Vec<_> = errors.into_iter().collect();
    if errors.is_empty() { Ok(()) } else { Err(Refused::Fields(errors)) }
}
