//! The verdict on a stale claim, as a pure table: what the object store showed against what the
//! claim wrote down.

use super::{
    id::{RunId, TenantId},
    money::UsdMicros,
    receipt::{BadReceipt, Receipt},
    run::Claim,
};

/// What a look at the claim's object showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// It is there.
    Present {
        /// Its metadata, read.
        receipt: Result<Receipt, BadReceipt>,
    },
    /// The store answered that there is no such object. A time-out, a refusal or a throttle is not
    /// this.
    Absent,
    /// The store gave no answer that says either.
    Unknown,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Finish the run at the receipt's cost.
    RollForward {
        /// The charge.
        cost: UsdMicros,
    },
    /// The attempt is lost: nothing was delivered.
    RollBack,
    /// A person must look; the text says at what.
    Audit(String),
    /// Nothing is proved; look again later.
    NotYet,
}

/// Judges a stale claim. Never charges more than the hold, and never on a receipt that differs from
/// what the claim's winner committed to before it uploaded.
pub fn judge(
    run_id: RunId,
    tenant_id: TenantId,
    reserved: UsdMicros,
    claim: &Claim,
    sight: &Sight,
) -> Verdict {
    let receipt = match sight {
        Sight::Unknown => return Verdict::NotYet,
        Sight::Absent => return Verdict::RollBack,
        Sight::Present { receipt: Err(bad) } => return Verdict::Audit(bad.to_string()),
        Sight::Present { receipt: Ok(receipt) } => receipt,
    };
    if receipt.run_id != run_id || receipt.tenant_id != tenant_id {
        Verdict::Audit(format!("the receipt names run {}", receipt.run_id))
    } else if receipt.cost > reserved {
        Verdict::Audit(format!("the receipt's cost {} is above the hold {reserved}", receipt.cost))
    } else if receipt.cost != claim.cost {
        Verdict::Audit(format!("the receipt's cost {} is not the claim's {}", receipt.cost, claim.cost))
    } else if receipt.sha256 != claim.sha256 {
        Verdict::Audit("the receipt's sha256 is not the claim's".to_owned())
    } else {
        Verdict::RollForward { cost: receipt.cost }
    }
}
