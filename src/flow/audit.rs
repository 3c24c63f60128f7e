//! Audit: proves the books, and never changes them.
//!
//! The database is compared with itself in one snapshot. The gate follows the ledger by a moment, so
//! a difference there counts only when it stays the same while nothing of the tenant moves.

use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::{Ctx, Error};
use crate::{
    domain::{
        api_key::hex,
        id::{RunId, TenantId},
        receipt::Receipt,
    },
    store::{Finding, RunCharge},
};

/// What an audit found.
#[derive(Debug)]
pub struct Audit {
    /// How many tenants it looked at.
    pub tenants: u64,
    /// How many runs there are.
    pub runs: i64,
    /// What does not agree.
    pub differences: Vec<Finding>,
}

const PAGE_ROWS: i64 = 500;
/// How often a difference at the gate is looked at again, and how long apart.
const SECOND_LOOKS: u32 = 5;
const SECOND_LOOK_AFTER: Duration = Duration::from_millis(200);

/// Audits everything; the objects too where `receipts` asks for it.
///
/// # Errors
/// [`Error`] when something could not be looked at.
pub async fn audit(cx: &Ctx, receipts: bool) -> Result<Audit, Error> {
    let mut differences = cx.store.audit_books().await?;
    let mut tenants = 0;
    let mut after = None;
    loop {
        let page = cx.store.tenants(after, PAGE_ROWS).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.tenant_id);
        for tenant in &page {
            tenants += 1;
            differences.extend(gate(cx, tenant.tenant_id).await?);
        }
    }
    if receipts {
        let mut after = None;
        loop {
            let page = cx.store.completed(after, PAGE_ROWS).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.run_id);
            for run in &page {
                differences.extend(object(cx, run).await?);
            }
        }
    }
    Ok(Audit { tenants, runs: cx.store.count_runs().await?, differences })
}

/// Holds a tenant's figures at the gate against the ledger.
async fn gate(cx: &Ctx, tenant_id: TenantId) -> Result<Vec<Finding>, Error> {
    let mut last = gate_once(cx, tenant_id).await?;
    for _ in 0..SECOND_LOOKS {
        if last.is_empty() {
            break;
        }
        tokio::time::sleep(SECOND_LOOK_AFTER).await;
        let again = gate_once(cx, tenant_id).await?;
        // On a busy tenant both figures move; a difference that stays is none of traffic.
        let of = |finding: &Finding| {
            let off_by = finding.found_usd_micros - finding.expected_usd_micros;
            (finding.kind.clone(), finding.run_id, off_by)
        };
        last.retain(|finding| again.iter().any(|other| of(other) == of(finding)));
    }
    Ok(last)
}

async fn gate_once(cx: &Ctx, tenant_id: TenantId) -> Result<Vec<Finding>, Error> {
    let seen = cx.budget.inspect(tenant_id).await?;
    let epoch = cx.store.epoch(tenant_id).await?;
    // A gate that knows nothing, or another epoch, admits nothing and cannot be wrong.
    let Some(budget) = seen.budget.filter(|budget| Some(budget.epoch) == epoch) else {
        return Ok(Vec::new());
    };
    let balance = cx.store.balance(tenant_id).await?;
    let open = cx.store.open_holds(tenant_id).await?;
    let finding = |kind: &str, run_id: Option<RunId>, expected, found, detail: &str| Finding {
        kind: kind.to_owned(),
        tenant_id,
        run_id,
        expected_usd_micros: expected,
        found_usd_micros: found,
        detail: detail.to_owned(),
    };
    let mut findings = Vec::new();
    let drift = super::sweep::drift(cx, tenant_id, &seen, balance.available, balance.held).await?;
    if drift != 0 {
        findings.push(finding(
            "gate_available",
            None,
            budget.available_usd_micros - drift,
            budget.available_usd_micros,
            "what Redis lets be spent is not what the ledger says",
        ));
    }
    for (run_id, amount) in &open {
        let found = seen.holds.get(run_id).map_or(0, |hold| hold.amount_usd_micros);
        if found != amount.get() {
            findings.push(finding(
                "gate_hold",
                Some(*run_id),
                amount.get(),
                found,
                "Redis' reservation is not the open run's hold",
            ));
        }
    }
    for (run_id, hold) in &seen.holds {
        // A younger one belongs to a submit under way, or to one that died and is about to be swept.
        let under_way = hold.age < cx.pace.reservation_grace;
        if !under_way && !open.iter().any(|(open, _)| open == run_id) {
            findings.push(finding(
                "gate_hold",
                Some(*run_id),
                0,
                hold.amount_usd_micros,
                "Redis has a reservation without an open run",
            ));
        }
    }
    Ok(findings)
}

/// Holds a completed run against its object: there, with its receipt, and its very bytes.
async fn object(cx: &Ctx, run: &RunCharge) -> Result<Option<Finding>, Error> {
    let finding = |kind: &str, found, detail: String| {
        Some(Finding {
            kind: kind.to_owned(),
            tenant_id: run.tenant_id,
            run_id: Some(run.run_id),
            expected_usd_micros: run.cost_usd_micros,
            found_usd_micros: found,
            detail,
        })
    };
    let Some((bytes, metadata)) = cx.results.fetch(&run.result_key).await? else {
        return Ok(finding("object_missing", 0, format!("there is no object {}", run.result_key)));
    };
    Ok(match Receipt::from_metadata(&metadata) {
        Err(bad) => finding("receipt_malformed", 0, bad.to_string()),
        Ok(receipt) if receipt.run_id != run.run_id || receipt.tenant_id != run.tenant_id => {
            finding("receipt_run", receipt.cost.get(), format!("the receipt names run {}", receipt.run_id))
        }
        Ok(receipt) if receipt.cost.get() != run.cost_usd_micros => {
            finding("receipt_cost", receipt.cost.get(), "the receipt says another cost".to_owned())
        }
        Ok(receipt) if receipt.sha256 != run.sha256 || hex(&Sha256::digest(&bytes)) != run.sha256 => finding(
            "object_bytes",
            receipt.cost.get(),
            "the object's bytes are not those of the run".to_owned(),
        ),
        Ok(_) => None,
    })
}
