//! Audit: proves the books, and never changes them.
//!
//! It goes from small to large, in pages, so that no statement is long and none takes a lock that a
//! submit waits for: each run against its ledger rows, each snapshot against the transfers since the
//! one before, each tenant's books (newest snapshot plus tail) against its open runs and against the
//! gate, and, where asked, each result against its receipt. `docs/audit.md` says what that can show and
//! what it cannot.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use sha2::{Digest as _, Sha256};

use super::{Ctx, Error};
use crate::{
    domain::{
        api_key::hex,
        id::{RunId, TenantId},
        receipt::Receipt,
        run::RunState,
    },
    store::{Books, Finding, RunCharge},
};

/// What an audit found.
#[derive(Debug, Default)]
pub struct Audit {
    /// How many tenants it looked at.
    pub tenants: u64,
    /// How many runs it looked at.
    pub runs: i64,
    /// What does not agree; at most [`FINDINGS_MAX`].
    pub differences: Vec<Finding>,
    /// Whether there are more.
    pub truncated: bool,
}

/// More differences than anybody reads one by one.
pub const FINDINGS_MAX: usize = 10_000;

/// Runs that one statement compares with their ledger rows.
const RUNS_AT_ONCE: i64 = 20_000;
/// Snapshots that one statement compares; each stands for some 5,000 transfers.
const SNAPSHOTS_AT_ONCE: i64 = 20;
/// Tenants whose books one statement reads.
const TENANTS_AT_ONCE: i64 = 100;
/// Completed runs that one statement lists.
const RESULTS_AT_ONCE: i64 = 500;
/// Tenants and results that are looked at at the same time.
const LOOKS_AT_ONCE: usize = 8;

/// In how many looks a difference at the gate must be seen, how many are taken at most, and how long
/// apart.
const STEADY_LOOKS: u32 = 5;
const LOOKS_MAX: u32 = 50;
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);

impl Audit {
    fn add(&mut self, findings: impl IntoIterator<Item = Finding>) {
        for finding in findings {
            if self.differences.len() < FINDINGS_MAX {
                self.differences.push(finding);
            } else {
                self.truncated = true;
            }
        }
    }
}

/// Audits everything; the objects too where `receipts` asks for it.
///
/// # Errors
/// [`Error`] when something could not be looked at.
pub async fn audit(cx: &Ctx, receipts: bool) -> Result<Audit, Error> {
    let mut audit = Audit::default();
    let mut range = cx.store.audit_range(None, RUNS_AT_ONCE).await?;
    while let Some(page) = range {
        audit.runs += page.runs;
        audit.add(cx.store.audit_runs(page).await?);
        range = cx.store.audit_range(Some(page), RUNS_AT_ONCE).await?;
    }
    let mut after = None;
    loop {
        let (findings, last) = cx.store.audit_snapshots(after, SNAPSHOTS_AT_ONCE).await?;
        audit.add(findings);
        if last.is_none() {
            break;
        }
        after = last;
    }
    let mut after = None;
    loop {
        let page = cx.store.audit_tenants(after, TENANTS_AT_ONCE).await?;
        let (Some(first), Some(last)) = (page.first(), page.last()) else { break };
        after = Some(last.tenant_id());
        audit.add(cx.store.audit_usage(first.tenant_id(), last.tenant_id()).await?);
        audit.add(cx.store.audit_keys(first.tenant_id(), last.tenant_id()).await?);
        audit.tenants += u64::try_from(page.len()).unwrap_or(u64::MAX);
        audit.add(page.iter().flat_map(books));
        audit.add(gates(cx, &page).await?);
    }
    if receipts {
        results(cx, &mut audit).await?;
    }
    Ok(audit)
}

/// Holds every kept result against its run.
async fn results(cx: &Ctx, audit: &mut Audit) -> Result<(), Error> {
    let mut after = None;
    loop {
        let page = cx.store.completed(after, RESULTS_AT_ONCE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.run_id);
        let mut looks = stream::iter(page.iter().map(|run| object(cx, run))).buffer_unordered(LOOKS_AT_ONCE);
        while let Some(finding) = looks.next().await {
            audit.add(finding?);
        }
    }
}

/// Holds a tenant's balances against what they must be whatever was booked.
fn books(books: &Books) -> Vec<Finding> {
    let finding = |kind: &str, expected_usd_micros, found_usd_micros, detail: &str| Finding {
        kind: kind.to_owned(),
        tenant_id: books.tenant_id(),
        run_id: None,
        expected_usd_micros,
        found_usd_micros,
        detail: detail.to_owned(),
    };
    let mut findings = Vec::new();
    if books.available < 0 {
        findings.push(finding(
            "overspent",
            0,
            books.available,
            "more was held and charged than was deposited",
        ));
    }
    if books.held != books.open_reserved {
        findings.push(finding(
            "held",
            books.open_reserved,
            books.held,
            "the ledger holds another sum than the open runs reserved",
        ));
    }
    findings
}

/// Holds the gate against the books of one page of tenants. Whose budget Redis does not know, or knows of
/// another epoch, cannot spend by it; whose agrees without a hold is done with; the others are looked at
/// one by one.
async fn gates(cx: &Ctx, page: &[Books]) -> Result<Vec<Finding>, Error> {
    let tenants: Vec<TenantId> = page.iter().map(Books::tenant_id).collect();
    let glances = cx.budget.glance(&tenants).await?;
    let closer = page.iter().zip(glances).filter(|(books, glance)| {
        glance.is_some_and(|glance| {
            let idle = books.open_runs == 0 && glance.holds == 0;
            let agrees = glance.epoch == books.budget_epoch && glance.available_usd_micros == books.available;
            !(idle && agrees)
        })
    });
    let mut looks =
        stream::iter(closer.map(|(books, _)| gate(cx, books.tenant_id()))).buffer_unordered(LOOKS_AT_ONCE);
    let mut findings = Vec::new();
    while let Some(look) = looks.next().await {
        findings.extend(look?);
    }
    Ok(findings)
}

/// Holds a tenant's figures at the gate against the ledger, while both may move.
///
/// A look between two equal readings of the books is exact, save for what is on its way from the ledger
/// to the gate; so what differs in several of them is no traffic. On a tenant so busy that there is no
/// such look, a difference counts that was the same in all of very many.
async fn gate(cx: &Ctx, tenant_id: TenantId) -> Result<Vec<Finding>, Error> {
    let (mut steady_looks, mut steady, mut always) = (0, None, None);
    for _ in 0..LOOKS_MAX {
        let look = look_at_gate(cx, tenant_id).await?;
        if look.steady {
            steady_looks += 1;
            if !still(&mut steady, &look.findings) || steady_looks >= STEADY_LOOKS {
                return Ok(steady.unwrap_or_default());
            }
        }
        still(&mut always, &look.findings);
        tokio::time::sleep(LOOK_AGAIN_AFTER).await;
    }
    Ok(steady.or(always).unwrap_or_default())
}

/// Keeps of `kept` what `seen` shows too; whether anything is left.
fn still(kept: &mut Option<Vec<Finding>>, seen: &[Finding]) -> bool {
    let of = |finding: &Finding| {
        let off_by = finding.found_usd_micros - finding.expected_usd_micros;
        (finding.kind.clone(), finding.run_id, off_by)
    };
    let kept = kept.get_or_insert_with(|| seen.to_vec());
    kept.retain(|finding| seen.iter().any(|other| of(other) == of(finding)));
    !kept.is_empty()
}

struct Look {
    findings: Vec<Finding>,
    /// Whether the ledger stood still meanwhile.
    steady: bool,
}

async fn look_at_gate(cx: &Ctx, tenant_id: TenantId) -> Result<Look, Error> {
    let nothing = Look { findings: Vec::new(), steady: true };
    let Some(books) = cx.store.audit_tenant(tenant_id).await? else { return Ok(nothing) };
    let open = cx.store.open_holds(tenant_id).await?;
    let seen = cx.budget.inspect(tenant_id).await?;
    // A gate that knows nothing, or another epoch, admits nothing and cannot be wrong.
    let Some(budget) = seen.budget.filter(|budget| budget.epoch == books.budget_epoch) else {
        return Ok(nothing);
    };
    let drift = super::sweep::drift(cx, tenant_id, &seen, books.available + books.held).await?;
    let steady = cx.store.audit_tenant(tenant_id).await? == Some(books);

    let finding = |kind: &str, run_id: Option<RunId>, expected, found, detail: &str| Finding {
        kind: kind.to_owned(),
        tenant_id,
        run_id,
        expected_usd_micros: expected,
        found_usd_micros: found,
        detail: detail.to_owned(),
    };
    let mut findings = Vec::new();
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
        let (kind, found) = match seen.holds.get(run_id) {
            Some(hold) => ("gate_hold_amount", hold.amount_usd_micros),
            None => ("gate_hold_missing", 0),
        };
        if found != amount.get() {
            let detail = "Redis' reservation is not the open run's hold";
            findings.push(finding(kind, Some(*run_id), amount.get(), found, detail));
        }
    }
    let open: std::collections::HashSet<RunId> = open.into_iter().map(|(run_id, _)| run_id).collect();
    for (run_id, hold) in &seen.holds {
        // A younger one belongs to a submit under way, or to one that died and is about to be swept.
        if hold.age >= cx.pace.reservation_grace && !open.contains(run_id) {
            findings.push(finding(
                "gate_hold_without_run",
                Some(*run_id),
                0,
                hold.amount_usd_micros,
                "Redis has a reservation without an open run",
            ));
        }
    }
    Ok(Look { findings, steady })
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
        if is_past_retention(cx, run.run_id).await? {
            return Ok(None);
        }
        return Ok(finding("object_missing", 0, format!("there is no object {}", run.result_key)));
    };
    let receipt = match Receipt::from_metadata(&metadata) {
        Err(bad) => return Ok(finding("receipt_malformed", 0, bad.to_string())),
        Ok(receipt) => receipt,
    };
    let cost = receipt.cost.get();
    Ok(if receipt.run_id != run.run_id || receipt.tenant_id != run.tenant_id {
        let detail = format!("the receipt names run {} of tenant {}", receipt.run_id, receipt.tenant_id);
        finding("receipt_run", cost, detail)
    } else if cost != run.cost_usd_micros {
        finding("receipt_cost", cost, "the receipt says another cost".to_owned())
    } else if receipt.sha256 != run.sha256 {
        finding("receipt_sha256", cost, format!("the receipt says that the bytes hash to {}", receipt.sha256))
    } else if hex(&Sha256::digest(&bytes)) != run.sha256 {
        finding("object_bytes", cost, format!("the bytes of {} are not those of the run", run.result_key))
    } else {
        None
    })
}

/// Whether a run's retention ended since it was listed.
async fn is_past_retention(cx: &Ctx, run_id: RunId) -> Result<bool, Error> {
    let now = cx.store.now().await?;
    Ok(match cx.store.find_run(run_id).await?.map(|run| run.state) {
        Some(RunState::Completed { end, .. }) => end.retention_until <= now,
        _ => false,
    })
}
