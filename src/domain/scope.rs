//! What an API key may do.

use serde::{Serialize, Serializer};

/// One right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Buy runs.
    RunsWrite,
    /// See runs and their results.
    RunsRead,
    /// See the budget, the usage and the ledger.
    UsageRead,
    /// Make, list, rotate and revoke keys.
    KeysManage,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::RunsWrite, Self::RunsRead, Self::UsageRead, Self::KeysManage];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RunsWrite => "runs:write",
            Self::RunsRead => "runs:read",
            Self::UsageRead => "usage:read",
            Self::KeysManage => "keys:manage",
        }
    }

    /// The right of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.name() == name)
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// The rights of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scopes {
    /// All, also those that do not exist yet.
    All,
    /// These.
    Only(Vec<Scope>),
}

impl Scopes {
    /// Whether a right is among them.
    pub fn allow(&self, scope: Scope) -> bool {
        match self {
            Self::All => true,
            Self::Only(scopes) => scopes.contains(&scope),
        }
    }

    /// Whether whoever has these may hand out `others`: nobody hands out more than they have.
    pub fn cover(&self, others: &Self) -> bool {
        match others {
            Self::All => *self == Self::All,
            Self::Only(scopes) => scopes.iter().all(|scope| self.allow(*scope)),
        }
    }
}

impl Serialize for Scopes {
    /// The names of those that exist now.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(Scope::ALL.into_iter().filter(|scope| self.allow(*scope)))
    }
}
