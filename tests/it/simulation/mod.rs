//! The simulation: random sequences of what can happen, over real services, against a simple model.
//!
//! After every step no tenant has overspent; a refusal for lack of budget is exact; one key is one run.
//! After the last one everything comes to rest and the promises P1–P7 hold (`harness::check`). A failing
//! sequence shrinks to a short one, which is kept in [`found`].
//!
//! A seed names the sequences: `SIM_SEED=7 SIM_CASES=1000 cargo test simulation` runs others, and longer.
//! Without them the run is always the same, so that what CI says of a change is about the change.

mod found;

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::TimeDelta;
use dpp::{
    domain::{
        id::RunId,
        run::{Leased, Reason},
    },
    flow::{
        crash::{CrashPoint, Fault},
        deposit, finish, rebuild, resend, survive, take,
    },
    reaper::Pass,
    worker,
};
use futures::future::join_all;
use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::json;

use crate::harness::{Answer, Tenant, TestApp, decision};

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Step {
    /// A submit: new, a replay, or another payload under a used key.
    Submit { tenant: usize, key: u8, cost: usize },
    /// The same submit several times at once.
    SubmitAtOnce { tenant: usize, key: u8, cost: usize, times: usize },
    /// The API dies, or meets an outage, during a submit.
    SubmitFails { tenant: usize, key: u8, cost: usize, point: CrashPoint, fault: Fault },
    /// A worker takes what one receive brings and works on it to the end.
    Work,
    /// A worker dies with it, or meets an outage.
    WorkFails { point: CrashPoint, fault: Fault },
    /// A worker takes a run and pauses.
    Pause,
    /// A paused worker comes back and delivers.
    ZombieFinishes { cost_micros: i64 },
    /// A paused worker comes back and fails its run.
    ZombieFails,
    /// A paused worker comes back and hands its run back.
    ZombieHandsBack,
    /// A paused worker's beat arrives.
    ZombieBeats,
    /// Time passes.
    Wait { secs: i64 },
    /// One pass of the reaper.
    Reap { pass: usize },
    /// The same by two reapers at once.
    ReapTwice { pass: usize },
    /// A reaper dies in a pass, or meets an outage.
    ReapFails { pass: usize, point: CrashPoint, fault: Fault },
    /// Messages come again, whether or not they should.
    DeliverAgain,
    /// The queue loses all it has.
    LoseMessages,
    /// Redis forgets everything.
    FlushRedis,
    /// Redis forgets its scripts.
    FlushScripts,
    /// Redis forgets one tenant's holds, as an eviction would.
    EvictHolds { tenant: usize },
    /// A budget is rebuilt.
    Rebuild { tenant: usize },
    /// A rebuild dies, or meets an outage.
    RebuildFails { tenant: usize, point: CrashPoint, fault: Fault },
    /// A deposit, perhaps under a used reference.
    Deposit { tenant: usize, reference: u8, dollars: i64 },
    /// A deposit that dies, or meets an outage.
    DepositFails { tenant: usize, reference: u8, dollars: i64, point: CrashPoint, fault: Fault },
    /// A snapshot of the ledger.
    Snapshot { tenant: usize },
    /// The tenant may not buy.
    Suspend { tenant: usize },
    /// The tenant may buy again.
    Resume { tenant: usize },
    /// All processes start anew.
    Restart,
}

const TENANTS: usize = 2;
const COSTS: [&str; 4] = ["0.0120", "0.5000", "1.0000", "2.0000"];

const SUBMIT_POINTS: [CrashPoint; 3] =
    [CrashPoint::SubmitReserve, CrashPoint::SubmitInsert, CrashPoint::SubmitSend];
const WORK_POINTS: [CrashPoint; 8] = [
    CrashPoint::TakeReceive,
    CrashPoint::TakeLease,
    CrashPoint::TakeDelete,
    CrashPoint::FinishClaim,
    CrashPoint::FinishPut,
    CrashPoint::FinishEnd,
    CrashPoint::Settle,
    CrashPoint::FinishDelete,
];
const REAP_POINTS: [CrashPoint; 13] = [
    CrashPoint::ExpireRequeue,
    CrashPoint::ExpireEnd,
    CrashPoint::ReconcileEnd,
    CrashPoint::Settle,
    CrashPoint::ResendMark,
    CrashPoint::ResendSend,
    CrashPoint::ResendPutOff,
    CrashPoint::RebuildRaise,
    CrashPoint::RebuildSet,
    CrashPoint::RebuildCommit,
    CrashPoint::RetainPurge,
    CrashPoint::RetainMark,
    CrashPoint::SweepSettle,
];
const REBUILD_POINTS: [CrashPoint; 3] =
    [CrashPoint::RebuildRaise, CrashPoint::RebuildSet, CrashPoint::RebuildCommit];
const DEPOSIT_POINTS: [CrashPoint; 2] = [CrashPoint::DepositPost, CrashPoint::DepositCommit];

fn fails(points: &'static [CrashPoint]) -> impl Strategy<Value = (CrashPoint, Fault)> {
    (prop::sample::select(points), prop::sample::select(&Fault::ALL[..]))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let tenant = 0..TENANTS;
    let submit = || (0..TENANTS, 0..6_u8, 0..COSTS.len());
    let step = prop_oneof![
        10 => submit().prop_map(|(tenant, key, cost)| Step::Submit { tenant, key, cost }),
        2 => (submit(), 2..6_usize)
            .prop_map(|((tenant, key, cost), times)| Step::SubmitAtOnce { tenant, key, cost, times }),
        4 => (submit(), fails(&SUBMIT_POINTS)).prop_map(|((tenant, key, cost), (point, fault))| {
            Step::SubmitFails { tenant, key, cost, point, fault }
        }),
        6 => Just(Step::Work),
        5 => fails(&WORK_POINTS).prop_map(|(point, fault)| Step::WorkFails { point, fault }),
        3 => Just(Step::Pause),
        2 => (0..2_500_000_i64).prop_map(|cost| Step::ZombieFinishes { cost_micros: cost / 100 * 100 }),
        1 => Just(Step::ZombieFails),
        1 => Just(Step::ZombieHandsBack),
        1 => Just(Step::ZombieBeats),
        4 => prop::sample::select(&[1_i64, 2, 4, 60, 4_000, 8_000_000][..]).prop_map(|secs| Step::Wait { secs }),
        6 => (0..Pass::ALL.len()).prop_map(|pass| Step::Reap { pass }),
        2 => (0..Pass::ALL.len()).prop_map(|pass| Step::ReapTwice { pass }),
        3 => (0..Pass::ALL.len(), fails(&REAP_POINTS))
            .prop_map(|(pass, (point, fault))| Step::ReapFails { pass, point, fault }),
        1 => Just(Step::DeliverAgain),
        1 => Just(Step::LoseMessages),
        2 => Just(Step::FlushRedis),
        1 => Just(Step::FlushScripts),
        1 => tenant.clone().prop_map(|tenant| Step::EvictHolds { tenant }),
        1 => tenant.clone().prop_map(|tenant| Step::Rebuild { tenant }),
        1 => (tenant.clone(), fails(&REBUILD_POINTS))
            .prop_map(|(tenant, (point, fault))| Step::RebuildFails { tenant, point, fault }),
        2 => (tenant.clone(), 0..4_u8, 1..4_i64)
            .prop_map(|(tenant, reference, dollars)| Step::Deposit { tenant, reference, dollars }),
        1 => (tenant.clone(), 0..4_u8, 1..4_i64, fails(&DEPOSIT_POINTS)).prop_map(
            |(tenant, reference, dollars, (point, fault))| {
                Step::DepositFails { tenant, reference, dollars, point, fault }
            }
        ),
        1 => tenant.clone().prop_map(|tenant| Step::Snapshot { tenant }),
        1 => tenant.clone().prop_map(|tenant| Step::Suspend { tenant }),
        2 => tenant.prop_map(|tenant| Step::Resume { tenant }),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..40)
}

/// What the outside may expect: one key, one payload, one run.
#[derive(Default)]
struct Model {
    /// By tenant and key: the payload and the run that a 202 named.
    accepted: HashMap<(usize, u8), (usize, RunId)>,
    /// Evicted reservations leave the gate with less than is right until the sweep has come by.
    evicted: [bool; TENANTS],
}

/// A world in which steps happen.
struct World {
    app: TestApp,
    tenants: Vec<Tenant>,
    model: Model,
    paused: Vec<Leased>,
}

fn key_text(key: u8) -> String {
    format!("key-{key}")
}

impl World {
    async fn new() -> Self {
        let app = TestApp::with(&[("QUEUE_TTL_SEC", "3600")]).await;
        let tenants = vec![app.tenant("3").await, app.tenant("1.5").await];
        Self { app, tenants, model: Model::default(), paused: Vec::new() }
    }

    async fn happen(&mut self, step: &Step) {
        let cx = Arc::clone(&self.app.cx);
        match *step {
            Step::Submit { tenant, key, cost } => {
                let answer = self.post(tenant, key, cost).await;
                self.judge(tenant, key, cost, &answer).await;
            }
            Step::SubmitAtOnce { tenant, key, cost, times } => {
                let answers = join_all((0..times).map(|_| self.post(tenant, key, cost))).await;
                for answer in &answers {
                    self.judge(tenant, key, cost, answer).await;
                }
            }
            Step::SubmitFails { tenant, key, cost, point, fault } => {
                cx.crash.arm(point, fault);
                let answer = self.post(tenant, key, cost).await;
                // Where nothing died (a replay, a refusal), it is a submit like any other.
                if answer.status != 500 {
                    self.judge(tenant, key, cost, &answer).await;
                }
            }
            Step::Work => drop(worker::once(cx, Duration::ZERO).await.unwrap()),
            Step::WorkFails { point, fault } => {
                cx.crash.arm(point, fault);
                drop(survive(worker::once(cx, Duration::ZERO)).await);
            }
            Step::Pause => {
                let messages = cx.queue.receive(1, Duration::from_secs(3), Duration::ZERO).await.unwrap();
                let taken = take::take(&cx, messages).await.unwrap();
                self.paused.extend(taken.leased.into_iter().map(|(run, _)| run));
                take::dismiss(&cx, taken.rest).await;
            }
            Step::ZombieFinishes { cost_micros } => {
                let Some(run) = self.paused.pop() else { return };
                let cost = dpp::domain::money::UsdMicros::new(cost_micros).unwrap().min(run.reserved);
                let product = dpp::pack::Product { data: json!({"late": true}), logs: Vec::new() };
                let _ = finish::finish(&cx, &run, "1", &product, cost, chrono::Utc::now()).await.unwrap();
            }
            Step::ZombieFails => {
                let Some(run) = self.paused.pop() else { return };
                let _ = finish::fail(&cx, &run, run.reserved, Reason::pack_crashed()).await.unwrap();
            }
            Step::ZombieHandsBack => {
                let Some(run) = self.paused.pop() else { return };
                let _ = finish::hand_back(&cx, &run).await.unwrap();
            }
            Step::ZombieBeats => {
                let leases: Vec<_> = self.paused.iter().map(|run| (run.run_id, run.token)).collect();
                drop(cx.store.beat(&leases, Duration::from_secs(3)).await.unwrap());
            }
            Step::Wait { secs } => self.app.move_clock(TimeDelta::seconds(secs)),
            Step::Reap { pass } => drop(Pass::ALL[pass].once(&cx).await.unwrap()),
            Step::ReapTwice { pass } => {
                let (one, two) = tokio::join!(Pass::ALL[pass].once(&cx), Pass::ALL[pass].once(&cx));
                let _ = (one.unwrap(), two.unwrap());
            }
            Step::ReapFails { pass, point, fault } => {
                cx.crash.arm(point, fault);
                drop(survive(Pass::ALL[pass].once(&cx)).await);
            }
            Step::DeliverAgain => {
                let now = cx.store.now().await.unwrap();
                cx.store.resend_all().await.unwrap();
                for due in cx.store.due_sends(Duration::from_secs(3), false, 100).await.unwrap() {
                    resend::resend(&cx, &due, false, now).await.unwrap();
                    resend::resend(&cx, &due, false, now).await.unwrap();
                }
            }
            Step::LoseMessages => loop {
                let messages = cx.queue.receive(10, Duration::from_secs(3), Duration::ZERO).await.unwrap();
                if messages.is_empty() {
                    break;
                }
                for message in messages {
                    cx.queue.delete(&message.receipt).await.unwrap();
                }
            },
            Step::FlushRedis => drop(self.app.place.redis::<String>(&["FLUSHDB"]).await),
            Step::FlushScripts => drop(self.app.place.redis::<String>(&["SCRIPT", "FLUSH"]).await),
            Step::EvictHolds { tenant } => {
                let holds = format!("dpp:{{{}}}:holds", self.tenants[tenant].id);
                let _: i64 = self.app.place.redis(&["DEL", &holds]).await;
                self.model.evicted[tenant] = true;
            }
            Step::Rebuild { tenant } => rebuild::rebuild(&cx, self.tenants[tenant].id).await.unwrap(),
            Step::RebuildFails { tenant, point, fault } => {
                cx.crash.arm(point, fault);
                drop(survive(rebuild::rebuild(&cx, self.tenants[tenant].id)).await);
            }
            Step::Deposit { tenant, reference, dollars } => self.deposit(tenant, reference, dollars).await,
            Step::DepositFails { tenant, reference, dollars, point, fault } => {
                cx.crash.arm(point, fault);
                self.deposit(tenant, reference, dollars).await;
            }
            Step::Snapshot { tenant } => {
                let mut books = cx.store.lock_books(self.tenants[tenant].id).await.unwrap().unwrap();
                books.snapshot().await.unwrap();
                books.commit().await.unwrap();
            }
            Step::Suspend { tenant } => {
                assert!(cx.store.set_suspended(self.tenants[tenant].id, true).await.unwrap());
            }
            Step::Resume { tenant } => {
                assert!(cx.store.set_suspended(self.tenants[tenant].id, false).await.unwrap());
            }
            Step::Restart => {
                let place = self.app.place.clone();
                let old = std::mem::replace(&mut self.app, TestApp::on(place, &[("QUEUE_TTL_SEC", "3600")]));
                old.abandon();
                self.paused.clear();
            }
        }
        // A point that was not reached must not go off in a later step.
        self.app.cx.crash.disarm();
    }

    async fn post(&self, tenant: usize, key: u8, cost: usize) -> Answer {
        self.app.post(&self.tenants[tenant], &key_text(key), &decision(COSTS[cost])).await
    }

    async fn deposit(&self, tenant: usize, reference: u8, dollars: i64) {
        let amount = dollars.to_string().parse().unwrap();
        let reference = format!("r{reference}");
        // What died is tried again by nobody: the ledger decides.
        let deposit = deposit::deposit(&self.app.cx, self.tenants[tenant].id, amount, &reference);
        drop(survive(deposit).await);
    }

    /// Holds an answer against the model.
    async fn judge(&mut self, tenant: usize, key: u8, cost: usize, answer: &Answer) {
        match (answer.status, answer.slug()) {
            (202, _) => {
                let run = answer.run_id();
                let known = *self.model.accepted.entry((tenant, key)).or_insert((cost, run));
                assert_eq!(known, (cost, run), "P6: one key, one payload, one run");
            }
            (409, "idempotency-key-reused") => {}
            (410, "run-expired") => {
                assert!(self.model.accepted.get(&(tenant, key)).is_none_or(|(known, _)| *known == cost));
            }
            (422, "budget-exceeded") => {
                assert!(!self.model.accepted.contains_key(&(tenant, key)), "P6: a known key is answered");
                let available = self.app.cx.store.balance(self.tenants[tenant].id).await.unwrap().available;
                let requested = COSTS[cost].parse().unwrap();
                let exact = available < requested || self.model.evicted[tenant];
                assert!(exact, "P10: {requested} refused with {available} available");
            }
            (403, "tenant-suspended") | (503, "service-unavailable") => {}
            other => panic!("{other:?}: {answer:?}"),
        }
    }

    /// What holds at every instant.
    async fn check(&mut self) {
        for (number, tenant) in self.tenants.iter().enumerate() {
            // An overspent ledger is an error of its own.
            let balance = self.app.cx.store.balance(tenant.id).await.expect("P2: nobody overspends");
            let sum =
                balance.available.checked_add(balance.held).and_then(|sum| sum.checked_add(balance.charged));
            assert_eq!(sum, Some(balance.deposited), "P1");
            // Once the sweep has been, an eviction is no excuse.
            let seen = self.app.cx.budget.inspect(tenant.id).await.unwrap();
            if seen.budget.is_none() {
                self.model.evicted[number] = false;
            }
        }
    }

    async fn end(self) {
        for tenant in &self.tenants {
            self.app.cx.store.set_suspended(tenant.id, false).await.unwrap();
        }
        self.app.move_clock(TimeDelta::seconds(20));
        self.app.finish().await;
    }
}

/// Runs one sequence to its end.
pub async fn run(steps: &[Step]) {
    let mut world = World::new().await;
    for step in steps {
        world.happen(step).await;
        world.check().await;
    }
    world.end().await;
}

#[test]
fn whatever_happens_the_promises_hold() {
    let cases = std::env::var("SIM_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(40);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let seed: u64 = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases, max_shrink_iters: 300, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let outcome = runner.run(&steps(), |steps| {
        runtime.block_on(run(&steps));
        Ok(())
    });
    if let Err(failed) = outcome {
        panic!("SIM_SEED={seed} SIM_CASES={cases}: {failed}");
    }
}
