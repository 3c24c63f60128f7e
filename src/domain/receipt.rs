//! Receipts: the price that a result carries with it, as metadata of its object.

use std::collections::HashMap;

use super::{
    id::{RunId, TenantId},
    money::UsdMicros,
};

/// What an object says it is and cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The run that made it.
    pub run_id: RunId,
    /// Whose run it was.
    pub tenant_id: TenantId,
    /// What it cost.
    pub cost: UsdMicros,
    /// SHA-256 of the object's bytes, lower-case hex.
    pub sha256: String,
}

/// Metadata names, without S3's `x-amz-meta-` prefix.
const COST: &str = "actual-cost-usd-micros";
const RUN_ID: &str = "run-id";
const TENANT_ID: &str = "tenant-id";
const SHA256: &str = "sha256";

/// An object's metadata is no receipt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the object's metadata has no sound `{name}`")]
pub struct BadReceipt {
    /// The entry that is missing or malformed.
    pub name: &'static str,
}

impl Receipt {
    /// As object metadata.
    pub fn to_metadata(&self) -> HashMap<String, String> {
        HashMap::from([
            (COST.to_owned(), self.cost.get().to_string()),
            (RUN_ID.to_owned(), self.run_id.to_string()),
            (TENANT_ID.to_owned(), self.tenant_id.to_string()),
            (SHA256.to_owned(), self.sha256.clone()),
        ])
    }

    /// Reads object metadata back. Nothing is guessed or clamped.
    ///
    /// # Errors
    /// [`BadReceipt`], naming the first entry that is missing or malformed.
    pub fn from_metadata(metadata: &HashMap<String, String>) -> Result<Self, BadReceipt> {
        let entry = |name: &'static str| metadata.get(name).ok_or(BadReceipt { name });
        let bad = |name: &'static str| BadReceipt { name };
        let cost = entry(COST)?;
        let canonical = cost.bytes().all(|byte| byte.is_ascii_digit());
        let micros = cost.parse::<i64>().ok().filter(|_| canonical).ok_or(bad(COST))?;
        let sha256 = entry(SHA256)?;
        if sha256.len() != 64 || !sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(bad(SHA256));
        }
        Ok(Self {
            run_id: entry(RUN_ID)?.parse().ok().ok_or(bad(RUN_ID))?,
            tenant_id: entry(TENANT_ID)?.parse().ok().ok_or(bad(TENANT_ID))?,
            cost: UsdMicros::new(micros).ok().ok_or(bad(COST))?,
            sha256: sha256.clone(),
        })
    }
}
