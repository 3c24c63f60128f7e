//! Identifiers as distinct types, so that one cannot stand where another belongs.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! uuid_ids {
    ($($(#[$doc:meta])* $name:ident = $new:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new one, unlike any other.
            #[expect(clippy::new_without_default, reason = "a default identifier would be a trap")]
            pub fn new() -> Self {
                Self(Uuid::$new())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            /// Reads the hyphenated form alone: one thing, one name.
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let id = text.parse::<uuid::fmt::Hyphenated>()?;
                Ok(Self(id.into_uuid()))
            }
        }
    )*};
}

uuid_ids! {
    /// A customer: an organisation with one budget.
    TenantId = now_v7;
    /// An API key; not the secret.
    KeyId = now_v7;
    /// One unit of bought work.
    RunId = now_v7;
    /// Names one taking of a run by one worker.
    LeaseToken = new_v4;
    /// Names one claim of a run's finish.
    FinalizeToken = new_v4;
}

/// A trace: 32 lower-case hex digits, not all zero (W3C Trace Context §3.2.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId(u128);

impl TraceId {
    /// A new one.
    #[expect(clippy::new_without_default, reason = "a default identifier would be a trap")]
    pub fn new() -> Self {
        Self(Uuid::new_v4().as_u128())
    }

    /// The trace of a `traceparent` header, or `None` if it is not a valid one (W3C Trace Context
    /// §3.2). Versions above 00 may carry more fields; version ff is forbidden.
    pub fn from_traceparent(header: &str) -> Option<Self> {
        let mut fields = header.split('-');
        let (version, trace, parent, flags) =
            (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let hex = |text: &str, length| {
            text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        let sound = hex(version, 2)
            && version != "ff"
            && (version != "00" || fields.next().is_none())
            && hex(parent, 16)
            && parent.bytes().any(|byte| byte != b'0')
            && hex(flags, 2);
        if sound { trace.parse().ok() } else { None }
    }

    /// A `traceparent` header that continues this trace from a new parent.
    pub fn to_traceparent(self) -> String {
        let parent = Uuid::new_v4().as_u128() >> 64;
        format!("00-{self}-{parent:016x}-01")
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The text is not a trace id.
#[derive(Debug, thiserror::Error)]
#[error("a trace id is 32 lower-case hex digits, not all zero")]
pub struct BadTraceId;

impl FromStr for TraceId {
    type Err = BadTraceId;

    fn from_str(text: &str) -> Result<Self, BadTraceId> {
        let sound = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match u128::from_str_radix(text, 16) {
            Ok(id) if sound && id != 0 => Ok(Self(id)),
            _ => Err(BadTraceId),
        }
    }
}

impl Serialize for TraceId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TraceId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
