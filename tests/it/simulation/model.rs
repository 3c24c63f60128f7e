//! What the outside may expect, from what was asked and answered and from what plain SQL and plain Redis
//! show. It shares no code with what it judges: prices, fees and balances are computed here once more.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::step::{CAPS, Job, KEY_MAX, MONTH_MAX, OPEN_MAX, Order, Submit, TENANTS, name};
use crate::harness::Answer;

/// `MAX_ATTEMPTS` of the simulation: few, so that runs are given up.
pub const ATTEMPTS_MAX: i64 = 2;
/// `QUEUE_TTL_SEC` of the simulation, and the retention of the plan.
pub const QUEUE_TTL_SECS: i64 = 3_600;
const RETENTION_SECS: i64 = 90 * 86_400;
/// The clock is moved in large steps; whatever else passes is less than this.
const REAL_SECS_MAX: i64 = 600;

/// What an honest execution asks its meter for.
fn charges((job, cap): Order) -> Vec<i64> {
    let charges: &[i64] = match job {
        Job::Decision | Job::Waits => &[12_000],
        Job::Charges => &[100_000, 3_300],
        Job::Free => &[],
        Job::WholeCap => &[CAPS[cap]],
        Job::AboveCap => &[10_000, 5_000_000],
        Job::Fails => &[7_000],
        Job::Panics => &[200_000],
        Job::Overruns => &[50_000],
    };
    charges.to_vec()
}

/// What the meter of an honest execution says.
fn metered(order: Order) -> i64 {
    let cap = CAPS[order.1];
    charges(order).iter().fold(0, |sum, charge| if sum + charge <= cap { sum + charge } else { sum })
}

/// What a run that fails pays at least: 2 %, within $0.0050 and $0.1000 (CONTRACT §4.2).
fn fee(cap: i64) -> i64 {
    (cap * 2 / 100 / 100 * 100).clamp(5_000, 100_000).min(cap)
}

/// A run as the database shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRow {
    pub run_id: String,
    pub tenant: usize,
    pub key: String,
    pub order: Option<String>,
    pub status: String,
    pub money_state: String,
    pub reserved: i64,
    pub cost: Option<i64>,
    pub attempts: i64,
    pub result_key: Option<String>,
    pub reason: Option<String>,
    pub lease: Option<String>,
}

/// A tenant's books, its runs' sums, and what the gate says.
#[derive(Clone, Debug, Default)]
pub struct Books {
    pub suspended: bool,
    pub deposited: i64,
    pub available: i64,
    pub held: i64,
    pub charged: i64,
    pub open: i64,
    pub cost: i64,
    /// What this month's runs have cost and open ones hold.
    pub of_month: i64,
    /// The most that the runs of one of its keys have cost and hold.
    pub of_keys: i64,
    pub gate: Option<Gate>,
}

/// The gate's budget, where it is of this life and this epoch.
#[derive(Clone, Debug)]
pub struct Gate {
    pub available: i64,
    pub holds: BTreeMap<String, i64>,
}

/// Everything at one instant.
#[derive(Debug)]
pub struct Observation {
    pub runs: Vec<RunRow>,
    pub books: Vec<Books>,
    /// Tenant, reference, amount.
    pub deposits: Vec<(usize, String, i64)>,
    /// Nothing was under way, so that books and gate are of one instant.
    pub at_rest: bool,
}

#[derive(Debug)]
struct Run {
    tenant: usize,
    key: u8,
    order: Order,
    /// Since when it is there, at the earliest.
    seen_at: i64,
    attempts: i64,
    /// Where the object of an open claim is to lie.
    claim: Option<String>,
    /// Status, cost, and since when at the earliest.
    ended: Option<(String, i64, i64)>,
}

#[derive(Default)]
struct Key {
    /// Payloads that may have become, or may become, the key's run.
    possible: Vec<Order>,
    /// The run that a 202 named.
    promised: Option<(Order, String)>,
}

/// The model.
#[derive(Default)]
pub struct Model {
    keys: HashMap<(usize, u8), Key>,
    runs: HashMap<String, Run>,
    /// By tenant and reference: the amounts that were asked for, and whether one was acknowledged.
    deposits: BTreeMap<(usize, String), (Vec<i64>, bool)>,
    /// The deposits that are known to be in the books.
    booked: BTreeMap<(usize, String), i64>,
    /// What paused workers have made of an attempt, by its token.
    delivered: HashMap<String, i64>,
    /// Runs that somebody has wished to stop.
    cancelled: HashSet<String>,
    /// The charges at which paused workers have tried to fail a run.
    failed: HashMap<String, HashSet<i64>>,
    /// The books when last seen.
    books: Vec<Books>,
    /// Evicted holds leave the gate with less than is right until it is rebuilt.
    evicted: [bool; TENANTS],
    ever_evicted: [bool; TENANTS],
    /// By how many seconds the clock has been moved, now and when the world was last looked at: what is new
    /// is younger than that.
    pub clock: i64,
    looked_at: i64,
    /// Whether lost runs pay nothing: at the last look, and now.
    pub refund: [bool; 2],
}

impl Model {
    pub fn asks(&mut self, submit: Submit) {
        let key = self.keys.entry((submit.tenant, submit.key)).or_default();
        key.possible.push((submit.job, submit.cap));
    }

    fn key(&mut self, submit: Submit) -> &mut Key {
        self.keys.get_mut(&(submit.tenant, submit.key)).expect("it was asked")
    }

    /// The payload will not become a run.
    fn refused(&mut self, submit: Submit) {
        let key = self.key(submit);
        let at = key.possible.iter().position(|order| *order == (submit.job, submit.cap));
        key.possible.swap_remove(at.expect("it was asked"));
    }

    /// The run of a key, as it was last seen.
    fn run_of(&self, submit: Submit) -> Option<(&str, &Run)> {
        let found = self.runs.iter().find(|(_, run)| (run.tenant, run.key) == (submit.tenant, submit.key));
        found.map(|(id, run)| (id.as_str(), run))
    }

    pub fn promised(&self, tenant: usize, key: u8) -> Option<(Order, &str)> {
        self.keys.get(&(tenant, key))?.promised.as_ref().map(|(order, run)| (*order, run.as_str()))
    }

    /// Every submit that was answered with a run, and every one whose outcome nobody knows.
    pub fn asked(&self) -> Vec<Submit> {
        let mut asked: Vec<_> = self
            .keys
            .iter()
            .filter_map(|((tenant, key), of)| {
                let order = of.promised.as_ref().map(|(order, _)| *order);
                let order = order.or_else(|| Some(self.run_of_key(*tenant, *key)?.order));
                let (job, cap) = order.or_else(|| of.possible.first().copied())?;
                Some(Submit { tenant: *tenant, key: *key, job, cap })
            })
            .collect();
        asked.sort_by_key(|submit| (submit.tenant, submit.key));
        asked
    }

    fn run_of_key(&self, tenant: usize, key: u8) -> Option<&Run> {
        self.runs.values().find(|run| (run.tenant, run.key) == (tenant, key))
    }

    /// Holds an answer against the history. `now` is what the database says after it.
    pub fn judge(&mut self, submit: Submit, answer: &Answer, now: &Observation) {
        let order = (submit.job, submit.cap);
        let there = now
            .runs
            .iter()
            .find(|run| (run.tenant, &run.key) == (submit.tenant, &super::world::key_text(submit.key)));
        match (answer.status, answer.slug()) {
            (202, _) => {
                let run = answer.run_id().to_string();
                let first = self.key(submit).promised.get_or_insert_with(|| (order, run.clone()));
                assert_eq!(*first, (order, run.clone()), "P6: one key, one payload, one run");
                let there =
                    there.unwrap_or_else(|| panic!("a run was promised and is not there: {answer:?}"));
                assert_eq!(there.run_id, run, "P6");
            }
            (409, "idempotency-key-reused") => {
                self.refused(submit);
                let key = self.key(submit);
                let other = key.possible.iter().any(|possible| *possible != order);
                assert!(other, "409, and the key never had another payload: {submit:?}");
                if let Some(there) = there.and_then(|run| run.order.as_ref()) {
                    assert_ne!(*there, name(order), "409 for the very payload of the key's run");
                }
            }
            (410, "run-expired") => {
                let Some((_, run)) = self.run_of(submit) else { panic!("410 for no run: {submit:?}") };
                assert_eq!(run.order, order, "410 for another payload");
                let Some((.., ended_at)) = &run.ended else { panic!("410 for an open run: {run:?}") };
                assert!(self.clock - ended_at >= RETENTION_SECS - REAL_SECS_MAX, "410 too early: {run:?}");
            }
            (422, "budget-exceeded") | (429, "too-many-concurrent-runs" | "spend-limit-exceeded") => {
                self.refused(submit);
                // A rival of the same moment may have come after it; a copy would have shared its hold.
                let rival =
                    |run: &RunRow| !self.runs.contains_key(&run.run_id) && run.order != Some(name(order));
                assert!(there.is_none_or(rival), "P6: a known key is answered: {there:?}");
                let (tenant, cap, books) = (submit.tenant, CAPS[submit.cap], &now.books[submit.tenant]);
                let open = now.runs.iter().filter(|run| run.tenant == tenant && run.cost.is_none()).count();
                let exact = match answer.body["limit"].as_str() {
                    None => books.available < cap,
                    Some("concurrent_runs_max") => open >= OPEN_MAX[tenant],
                    Some("monthly_spend_max_usd") => books.of_month + cap > MONTH_MAX[tenant],
                    Some("max_spend_usd") => KEY_MAX[tenant].is_some_and(|max| books.of_keys + cap > max),
                    other => panic!("{other:?}: {answer:?}"),
                };
                let exact = exact || self.evicted[tenant];
                assert!(exact, "P10: {submit:?} refused with {open} open runs and {books:?}: {answer:?}");
            }
            (403, "tenant-suspended") => {
                self.refused(submit);
                assert!(there.is_none(), "P6: a known key is answered: {there:?}");
            }
            (401, "unauthorized") => self.refused(submit),
            // Whatever died may have had its effect.
            (500, "internal-error") | (503, "service-unavailable") => {}
            other => panic!("{other:?}: {submit:?}: {answer:?}"),
        }
    }

    pub fn cancels(&mut self, run_id: &str) {
        self.cancelled.insert(run_id.to_owned());
    }

    pub fn evicts(&mut self, tenant: usize) {
        (self.evicted[tenant], self.ever_evicted[tenant]) = (true, true);
    }

    /// Whether an eviction may have left traces beside the holds.
    pub fn ever_evicted(&self, tenant: usize) -> bool {
        self.ever_evicted[tenant]
    }

    pub fn delivers(&mut self, token: String, cost: i64) {
        self.delivered.insert(token, cost);
    }

    pub fn fails(&mut self, run_id: String, used: i64) {
        let cap = CAPS[self.runs[&run_id].order.1];
        self.failed.entry(run_id).or_default().insert(used.max(fee(cap)).min(cap));
    }

    pub fn deposits(&mut self, tenant: usize, reference: &str, amount: i64) {
        self.deposits.entry((tenant, reference.to_owned())).or_default().0.push(amount);
    }

    /// Somebody was told that `amount` is deposited under this reference.
    pub fn acknowledged(&mut self, tenant: usize, reference: &str, amount: i64, now: &Observation) {
        let there = now
            .deposits
            .iter()
            .any(|(of, name, is)| (*of, name.as_str(), *is) == (tenant, reference, amount));
        assert!(there, "a deposit of {amount} was acknowledged and is not there");
        self.deposits.get_mut(&(tenant, reference.to_owned())).expect("it was asked for").1 = true;
    }

    /// What holds at every instant. `hands_back`: attempts may have been handed back. Returns the keys of
    /// claims that were rolled back, whose objects must be absent.
    pub fn observe(&mut self, now: &Observation, hands_back: bool) -> Vec<String> {
        let mut rolled_back = Vec::new();
        let was_suspended = |tenant: usize| self.books.get(tenant).is_some_and(|books| books.suspended);
        let suspended: Vec<_> =
            (0..TENANTS).map(|tenant| was_suspended(tenant) && now.books[tenant].suspended).collect();
        let mut keys = HashSet::new();
        for row in &now.runs {
            assert!(keys.insert((row.tenant, &row.key)), "P6: two runs of one key: {row:?}");
            assert_ne!(row.money_state, "AUDIT_REQUIRED", "nothing was forged: {row:?}");
            rolled_back.extend(self.observe_run(row, suspended[row.tenant], hands_back));
        }
        let there: HashSet<_> = now.runs.iter().map(|run| run.run_id.as_str()).collect();
        let gone = self.runs.keys().find(|run| !there.contains(run.as_str()));
        assert!(gone.is_none(), "a run is gone: {gone:?}");
        self.observe_deposits(now);
        for (tenant, books) in now.books.iter().enumerate() {
            self.observe_books(tenant, books, now);
        }
        self.books.clone_from(&now.books);
        self.looked_at = self.clock;
        if now.at_rest {
            self.refund[0] = self.refund[1];
        }
        rolled_back
    }

    fn observe_run(&mut self, row: &RunRow, suspended: bool, hands_back: bool) -> Option<String> {
        let key: u8 = row.key.trim_start_matches("key-").parse().unwrap();
        if !self.runs.contains_key(&row.run_id) {
            let of = self.keys.get(&(row.tenant, key)).unwrap_or_else(|| panic!("nobody asked for {row:?}"));
            let order = of.possible.iter().find(|order| Some(name(**order)) == row.order);
            let order = *order.unwrap_or_else(|| panic!("P6: nobody asked for {row:?}"));
            assert!(!suspended, "a suspended tenant bought {row:?}");
            assert_eq!(row.reserved, CAPS[order.1], "{row:?}");
            let run = Run {
                tenant: row.tenant,
                key,
                order,
                seen_at: self.looked_at,
                attempts: 0,
                claim: None,
                ended: None,
            };
            self.runs.insert(row.run_id.clone(), run);
        }
        let run = &self.runs[&row.run_id];
        assert_eq!((run.tenant, run.key, CAPS[run.order.1]), (row.tenant, key, row.reserved), "{row:?}");
        let least = if hands_back { run.attempts - 1 } else { run.attempts };
        assert!(row.attempts >= least, "attempts go back: {run:?}, {row:?}");
        match &run.ended {
            Some((status, cost, _)) => {
                assert_eq!(
                    (&row.status, row.cost),
                    (status, Some(*cost)),
                    "P3: a run has ended twice: {row:?}"
                );
            }
            None if row.cost.is_some() => self.ending(run, row),
            None => assert!(row.status == "QUEUED" || row.status == "PROCESSING", "{row:?}"),
        }
        let clock = self.looked_at;
        let run = self.runs.get_mut(&row.run_id).expect("it was just seen");
        run.attempts = row.attempts;
        if let (None, Some(cost)) = (&run.ended, row.cost) {
            run.ended = Some((row.status.clone(), cost, clock));
        }
        let open = row.result_key.clone().filter(|_| row.cost.is_none());
        std::mem::replace(&mut run.claim, open).filter(|claim| row.result_key.as_ref() != Some(claim))
    }

    /// Whether this is an end that the run may have come to.
    fn ending(&self, run: &Run, row: &RunRow) {
        let (cap, metered) = (CAPS[run.order.1], metered(run.order));
        let cost = row.cost.unwrap_or(-1);
        assert!((0..=cap).contains(&cost), "above its cap: {row:?}");
        let expected_money = if cost > 0 { "SETTLED" } else { "REFUNDED" };
        assert_eq!(row.money_state, expected_money, "{row:?}");
        let fails = matches!(run.order.0, Job::Fails | Job::Panics | Job::Overruns);
        match (row.status.as_str(), row.reason.as_deref()) {
            ("COMPLETED", None) => {
                let key = row.result_key.as_deref().unwrap_or_default();
                let late = self.delivered.iter().find(|(token, _)| key.contains(token.as_str()));
                match late {
                    Some((_, late)) => assert_eq!(cost, *late, "not what the late worker metered: {row:?}"),
                    None => {
                        assert!(!fails, "a pack that fails has completed: {row:?}");
                        assert_eq!(cost, metered, "not what the pack metered: {row:?}");
                    }
                }
            }
            ("FAILED", Some("platform_lost")) => {
                let policies = self.refund.map(|refund| if refund { 0 } else { fee(cap) });
                assert!(policies.contains(&cost), "not the policy's: {row:?}");
                assert_eq!(row.attempts, ATTEMPTS_MAX, "given up too early: {row:?}");
            }
            ("FAILED", Some(reason @ ("scripted" | "pack_crashed" | "timed_out"))) => {
                let own = match run.order.0 {
                    Job::Fails => reason == "scripted",
                    Job::Panics => reason == "pack_crashed",
                    Job::Overruns => reason == "timed_out",
                    _ => false,
                };
                let own = own && cost == metered.max(fee(cap)).min(cap);
                let late = reason == "pack_crashed"
                    && self.failed.get(&row.run_id).is_some_and(|charges| charges.contains(&cost));
                assert!(own || late, "no execution failed like this: {row:?}");
            }
            ("EXPIRED", Some("expired_in_queue")) => {
                assert_eq!(cost, 0, "{row:?}");
                let waited = self.clock - run.seen_at;
                assert!(waited >= QUEUE_TTL_SECS - REAL_SECS_MAX, "expired after {waited} s: {row:?}");
            }
            ("CANCELLED", None) => {
                assert!(self.cancelled.contains(&row.run_id), "nobody cancelled {row:?}");
                // Free where it waited or its worker died; else what was used when the wish arrived.
                let used = charges(run.order).into_iter().scan(0, |sum, charge| {
                    *sum = if *sum + charge <= cap { *sum + charge } else { *sum };
                    Some(*sum)
                });
                let paid = used.chain([0]).map(|used| used.max(fee(cap)).min(cap));
                assert!(cost == 0 || paid.into_iter().any(|paid| paid == cost), "not what was used: {row:?}");
            }
            other => panic!("no end: {other:?}: {row:?}"),
        }
    }

    fn observe_deposits(&mut self, now: &Observation) {
        let mut booked = BTreeMap::new();
        for (tenant, reference, amount) in &now.deposits {
            let at = (*tenant, reference.clone());
            let (asked, _) = self.deposits.get(&at).unwrap_or_else(|| panic!("nobody deposited {at:?}"));
            assert!(asked.contains(amount), "nobody deposited {amount} as {at:?}");
            assert!(booked.insert(at.clone(), *amount).is_none(), "deposited twice: {at:?}");
        }
        for (at, amount) in &self.booked {
            assert_eq!(booked.get(at), Some(amount), "a deposit has changed: {at:?}");
        }
        let lost = self.deposits.iter().find(|(at, (_, told))| *told && !booked.contains_key(at));
        assert!(lost.is_none(), "a deposit was acknowledged and is gone: {lost:?}");
        self.booked = booked;
    }

    fn observe_books(&mut self, tenant: usize, books: &Books, now: &Observation) {
        let Books { deposited, available, held, charged, open, cost, .. } = *books;
        assert!(available >= 0 && held >= 0, "P2: tenant {tenant} has overspent: {books:?}");
        assert_eq!((held, charged), (open, cost), "P1: the ledger and the runs differ: {books:?}");
        let runs = now.runs.iter().filter(|run| run.tenant == tenant && run.cost.is_none()).count();
        // A gate that has lost holds counts fewer than are open.
        assert!(runs <= OPEN_MAX[tenant] || self.ever_evicted[tenant], "{runs} runs are open");
        assert!(books.of_month <= MONTH_MAX[tenant], "the month costs more than it may: {books:?}");
        assert!(KEY_MAX[tenant].is_none_or(|max| books.of_keys <= max), "a key has overspent: {books:?}");
        assert_eq!(deposited, available + held + charged, "P1: {books:?}");
        let booked: i64 =
            self.booked.iter().filter(|((of, _), _)| *of == tenant).map(|(_, amount)| amount).sum();
        assert_eq!(deposited, booked, "P1: {books:?}");
        if !now.at_rest {
            return;
        }
        let Some(gate) = &books.gate else {
            self.evicted[tenant] = false;
            return;
        };
        // It follows every release and goes before every hold.
        assert!(gate.available <= available, "P2: the gate would let tenant {tenant} overspend: {books:?}");
        let open: BTreeMap<_, _> = now
            .runs
            .iter()
            .filter(|run| run.tenant == tenant && run.cost.is_none())
            .map(|run| (run.run_id.clone(), run.reserved))
            .collect();
        if gate.available == available && gate.holds == open {
            self.evicted[tenant] = false;
        }
    }

    /// At rest: every run has ended, and what the model has counted is what is left, to the micro.
    pub fn rest(&self, now: &Observation) {
        let open = self.runs.iter().find(|(_, run)| run.ended.is_none());
        assert!(open.is_none(), "P7: still open: {open:?}");
        for (tenant, books) in now.books.iter().enumerate() {
            let deposits: i64 =
                self.booked.iter().filter(|((of, _), _)| *of == tenant).map(|(_, amount)| amount).sum();
            let spent: i64 = self
                .runs
                .values()
                .filter(|run| run.tenant == tenant)
                .map(|run| run.ended.as_ref().map_or(0, |(_, cost, _)| *cost))
                .sum();
            assert_eq!(books.available, deposits - spent, "P1: tenant {tenant} at rest: {books:?}");
            if let Some(gate) = &books.gate {
                let right = gate.available == books.available && gate.holds.is_empty();
                assert!(right, "P1: the gate of tenant {tenant} at rest: {books:?}");
            }
        }
    }
}
