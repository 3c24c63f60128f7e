//! The crash matrix: every effect of every flow × every way in which it can fail. Each case is brought to
//! its effect, meets its fault, and is left; the app starts anew, the reaper passes until nothing
//! changes, and then the promises hold, the verdict is the very one that DESIGN §4 calls for, and the
//! client that tries again has its one run. In the pairs, the recovery meets a fault of its own.
//!
//! [`expected`] and [`reach`] are exhaustive: a crash point without a case does not compile.

use std::{
    collections::{BTreeSet, HashSet},
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use chrono::TimeDelta;
use dpp::{
    domain::{id::RunId, money::UsdMicros, run::Leased},
    flow::{
        self,
        crash::{CrashPoint, Fault},
        deposit, snapshot, take,
    },
    reaper::Pass,
    store::Balance,
    worker,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::harness::{Tenant, TestApp, decision, say, script::scripted, services::Place, until};

/// What the platform does with a run that it lost too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// It is tried again.
    Retried,
    /// There is no attempt left: it pays the minimum fee.
    MinimumFee,
    /// There is no attempt left: it pays nothing.
    Refund,
}

impl Lost {
    const ALL: [Self; 3] = [Self::Retried, Self::MinimumFee, Self::Refund];

    fn settings(self) -> [(&'static str, &'static str); 3] {
        let (attempts, policy) = match self {
            Self::Retried => ("3", "minimum_fee"),
            Self::MinimumFee => ("1", "minimum_fee"),
            Self::Refund => ("1", "refund"),
        };
        [("MAX_ATTEMPTS", attempts), ("REAPER_LEASE_POLICY", policy), ("QUEUE_TTL_SEC", "3600")]
    }
}

/// One case.
#[derive(Clone, Copy)]
struct Case {
    at: CrashPoint,
    fault: Fault,
    lost: Lost,
    /// What the recovery meets.
    second: Option<(CrashPoint, Fault)>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}, lost runs {:?}", self.at, self.fault, self.lost)?;
        self.second.map_or(Ok(()), |(at, fault)| write!(f, ", then {at:?} {fault:?}"))
    }
}

/// What has become of the one run when all is quiet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Verdict {
    /// There is none, and nothing is held for one.
    NoRun,
    /// It ended by itself at this attempt: `(status, cost in micros, attempts)`.
    Ended(&'static str, i64, i64),
    /// An attempt was lost: the next ends so, or the policy decides.
    AttemptLost(&'static str, i64),
    /// It waits for a person, and its hold with it.
    AuditRequired,
}
use Verdict::{AttemptLost, AuditRequired, Ended, NoRun};

/// What [`decision`] costs, in micros.
const COST: i64 = 12_000;
/// What a scripted run charges before it fails.
const FAILED_COST: i64 = 100_000;
/// The cap of every run here, its minimum fee, and the tenant's deposit.
const CAP: i64 = 1_000_000;
const MINIMUM_FEE: i64 = 20_000;
const DEPOSIT: i64 = 10_000_000;
/// A second deposit, where a case makes one.
const MORE: i64 = 5_000_000;

/// Cases that live at once.
const AT_ONCE: usize = 4;

const DONE: Verdict = Ended("COMPLETED", COST, 1);
const REDONE: Verdict = AttemptLost("COMPLETED", COST);

/// The verdict on the run, before the client tries again.
fn expected(at: CrashPoint, fault: Fault) -> Verdict {
    use CrashPoint as At;
    use Fault::{AnswerLost, DiesAfter, DiesBefore, NotApplied};
    match (at, fault) {
        // A reservation without a run is let go, whoever did not hear of it.
        (At::SubmitReserve, DiesBefore | DiesAfter | AnswerLost | NotApplied) => NoRun,
        // The commit is the moment of truth; a lost answer is read back.
        (At::SubmitInsert, DiesBefore | NotApplied) => NoRun,
        (At::SubmitInsert, DiesAfter | AnswerLost) => DONE,
        // Once it is committed, the run is done, with or without its first message.
        (At::SubmitSend | At::SubmitLetGo, _) => DONE,
        (At::TakeReceive | At::TakeDelete | At::TakeBury, _) => DONE,
        // A lease that nobody works under runs out.
        (At::TakeLease, DiesBefore | NotApplied) => DONE,
        (At::TakeLease, DiesAfter | AnswerLost) => REDONE,
        (At::BeatRenew | At::BeatHide, _) => DONE,
        // A claim without an object is a lost attempt.
        (At::FinishClaim, DiesBefore | DiesAfter | AnswerLost) => REDONE,
        (At::FinishClaim, NotApplied) => DONE,
        (At::FinishPut, DiesBefore | NotApplied) => REDONE,
        // An object with its receipt is rolled forward.
        (At::FinishPut, DiesAfter | AnswerLost) => DONE,
        (At::FinishEnd | At::Settle | At::FinishDelete, _) => DONE,
        (At::FailEnd, DiesBefore) => AttemptLost("FAILED", FAILED_COST),
        (At::FailEnd, DiesAfter | AnswerLost | NotApplied) => Ended("FAILED", FAILED_COST, 1),
        // What the meter counted, at least the minimum fee; what died with its worker is free.
        (At::StopEnd, DiesBefore) => Ended("CANCELLED", 0, 1),
        (At::StopEnd, DiesAfter | AnswerLost | NotApplied) => Ended("CANCELLED", MINIMUM_FEE, 1),
        (At::CancelEnd, DiesBefore | NotApplied) => DONE,
        (At::CancelEnd, DiesAfter | AnswerLost) => Ended("CANCELLED", 0, 0),
        // The worker dies as well; a wish that was not written down is none.
        (At::CancelRequest, DiesBefore | NotApplied) => REDONE,
        (At::CancelRequest, DiesAfter | AnswerLost) => Ended("CANCELLED", 0, 1),
        // What is handed back does not count as an attempt.
        (At::HandBackRequeue, DiesBefore) => REDONE,
        (At::HandBackRequeue, DiesAfter | AnswerLost | NotApplied) | (At::HandBackShow, _) => DONE,
        (At::ExpireRequeue, _) => REDONE,
        (At::ExpireEnd, _) => Ended("EXPIRED", 0, 0),
        (At::ReconcileEnd, _) => DONE,
        (At::ReconcilePark, _) => AuditRequired,
        (At::ResendMark | At::ResendSend | At::ResendPutOff, _) => DONE,
        // The submit that found the budget missing was not accepted.
        (At::RebuildRaise | At::RebuildSet | At::RebuildCommit, _) => NoRun,
        (At::DepositPost | At::DepositCommit, _) => NoRun,
        (At::SnapshotWrite | At::SnapshotCommit, _) => DONE,
        (At::RetainPurge | At::RetainMark, _) => DONE,
        (At::SweepSettle, _) => DONE,
        // A person's word is given again until it is taken.
        (At::ResolveEnd, _) => Ended("FAILED", 250_000, 1),
    }
}

/// Whether the client was answered that its submit is accepted, where the fault lies in the submit.
fn accepted(at: CrashPoint, fault: Fault) -> Option<bool> {
    use Fault::{AnswerLost, DiesAfter, DiesBefore, NotApplied};
    match (at, fault) {
        (CrashPoint::SubmitReserve | CrashPoint::SubmitInsert, DiesBefore | DiesAfter | NotApplied)
        | (CrashPoint::SubmitReserve, AnswerLost)
        | (CrashPoint::SubmitSend | CrashPoint::SubmitLetGo, DiesBefore | DiesAfter)
        | (CrashPoint::RebuildRaise | CrashPoint::RebuildSet | CrashPoint::RebuildCommit, _) => Some(false),
        (CrashPoint::SubmitInsert, AnswerLost)
        | (CrashPoint::SubmitSend | CrashPoint::SubmitLetGo, AnswerLost | NotApplied) => Some(true),
        _ => None,
    }
}

/// What was on stage when the fault struck.
struct Stage {
    body: Value,
    /// The submit's status, where the fault lay in it.
    answered: Option<u16>,
    deposited: bool,
}

/// Brings the world to `case.at`, and lets the fault happen there.
async fn reach(app: &TestApp, tenant: &Tenant, case: Case) -> Stage {
    use CrashPoint as At;
    let cx = &app.cx;
    let arm = || cx.crash.arm(case.at, case.fault);
    let mut stage = Stage { body: decision("1"), answered: None, deposited: false };
    match case.at {
        At::SubmitReserve | At::SubmitInsert | At::SubmitSend => {
            arm();
            stage.answered = Some(app.post(tenant, "one", &stage.body).await.status);
        }
        At::SubmitLetGo => {
            // Another submit of the key lives its whole life before the first has asked the gate.
            let pause = cx.crash.pause(At::SubmitReserve);
            let first = app.post(tenant, "one", &stage.body);
            let second = async {
                let waiting = pause.reached().await;
                app.submit(tenant, "one", "1").await;
                app.work().await;
                arm();
                waiting.go_on();
            };
            let (first, ()) = tokio::join!(first, second);
            stage.answered = Some(first.status);
        }
        At::TakeReceive
        | At::TakeLease
        | At::FinishClaim
        | At::FinishPut
        | At::FinishEnd
        | At::Settle
        | At::FinishDelete => {
            app.submit(tenant, "one", "1").await;
            arm();
            app.work().await;
        }
        At::TakeDelete | At::TakeBury => {
            // A message alone, so that no run is lost with its worker: a copy, or none of ours.
            app.submit(tenant, "one", "1").await;
            let (sqs, queue) = app.place.sqs();
            let body = if case.at == At::TakeDelete {
                let first =
                    sqs.receive_message().queue_url(queue).visibility_timeout(0).send().await.unwrap();
                first.messages()[0].body().unwrap().to_owned()
            } else {
                "not ours".to_owned()
            };
            app.work().await;
            sqs.send_message().queue_url(queue).message_body(body).send().await.unwrap();
            arm();
            app.work().await;
        }
        At::BeatRenew | At::BeatHide => {
            stage.body = scripted("1", &["charge 0.0120", "wait"]);
            let submitted = app.post(tenant, "one", &stage.body).await;
            assert_eq!(submitted.status, 202, "{submitted:?}");
            arm();
            in_work(app, async || cx.crash.fired()).await;
            app.script.go_on();
        }
        At::FailEnd => {
            stage.body = scripted("1", &["charge 0.1000", "fail"]);
            let submitted = app.post(tenant, "one", &stage.body).await;
            assert_eq!(submitted.status, 202, "{submitted:?}");
            arm();
            app.work().await;
        }
        At::HandBackRequeue | At::HandBackShow => {
            stage.body = scripted("1", &["charge 0.0120", "wait"]);
            let submitted = app.post(tenant, "one", &stage.body).await;
            assert_eq!(submitted.status, 202, "{submitted:?}");
            arm();
            // The worker is told to stop while the run is in work.
            let run_id = submitted.run_id();
            in_work(app, async || app.run(tenant, run_id).await["status"] == "PROCESSING").await;
        }
        At::StopEnd => {
            stage.body = scripted("1", &["charge 0.0120", "wait"]);
            let submitted = app.post(tenant, "one", &stage.body).await;
            let run_id = submitted.run_id();
            arm();
            let (soft, hard) = (CancellationToken::new(), CancellationToken::new());
            let worker = tokio::spawn(worker::run(Arc::clone(cx), 4, soft.clone(), hard));
            until("it is in work", async || app.run(tenant, run_id).await["status"] == "PROCESSING").await;
            assert_eq!(cancel(app, tenant, run_id).await, 202);
            until("its worker stops it", async || cx.crash.fired()).await;
            soft.cancel();
            worker.await.unwrap();
        }
        At::CancelEnd => {
            let run_id = app.submit(tenant, "one", "1").await;
            arm();
            assert_eq!(cancel(app, tenant, run_id).await, unanswered(case.fault));
        }
        At::CancelRequest => {
            let run_id = app.submit(tenant, "one", "1").await;
            take_and_die(app).await;
            arm();
            assert_eq!(cancel(app, tenant, run_id).await, unanswered(case.fault));
        }
        At::ExpireRequeue => {
            app.submit(tenant, "one", "1").await;
            take_and_die(app).await;
            app.move_clock(TimeDelta::seconds(4));
            arm();
            pass(app, Pass::Leases).await;
        }
        At::ExpireEnd => {
            app.submit(tenant, "one", "1").await;
            app.move_clock(TimeDelta::seconds(3_601));
            arm();
            pass(app, Pass::Waiting).await;
        }
        At::ReconcileEnd => {
            claim_and_die(app, tenant, At::FinishEnd).await;
            arm();
            pass(app, Pass::Claims).await;
        }
        At::ReconcilePark | At::ResolveEnd => {
            claim_and_die(app, tenant, At::FinishPut).await;
            forge(&app.place).await;
            if case.at == At::ResolveEnd {
                pass(app, Pass::Claims).await;
            }
            arm();
            if case.at == At::ResolveEnd {
                drop(flow::survive(resolve(app)).await);
            } else {
                pass(app, Pass::Claims).await;
            }
        }
        At::ResendMark | At::ResendSend | At::ResendPutOff => {
            cx.crash.arm(At::SubmitSend, Fault::DiesBefore);
            assert_eq!(app.post(tenant, "one", &stage.body).await.status, 500);
            app.move_clock(TimeDelta::seconds(4));
            if case.at == At::ResendPutOff {
                // Something is in the queue, so this run's message need not have been lost.
                let (sqs, queue) = app.place.sqs();
                sqs.send_message().queue_url(queue).message_body("not ours").send().await.unwrap();
            }
            arm();
            pass(app, Pass::Unsent).await;
        }
        At::RebuildRaise | At::RebuildSet | At::RebuildCommit => {
            let _: String = app.place.redis(&["FLUSHDB"]).await;
            arm();
            stage.answered = Some(app.post(tenant, "one", &stage.body).await.status);
        }
        At::DepositPost | At::DepositCommit => {
            arm();
            drop(flow::survive(deposit_more(app, tenant)).await);
            stage.deposited = true;
        }
        At::SnapshotWrite | At::SnapshotCommit => {
            app.submit(tenant, "one", "1").await;
            app.work().await;
            arm();
            drop(flow::survive(snapshot::snapshot(cx, tenant.id)).await);
        }
        At::RetainPurge | At::RetainMark => {
            app.submit(tenant, "one", "1").await;
            app.work().await;
            app.move_clock(TimeDelta::days(91));
            arm();
            pass(app, Pass::Retention).await;
        }
        At::SweepSettle => {
            app.submit(tenant, "one", "1").await;
            cx.crash.arm(At::Settle, Fault::DiesBefore);
            app.work().await;
            arm();
            pass(app, Pass::Reservations).await;
        }
    }
    assert!(cx.crash.fired(), "the scene does not come to its effect");
    stage
}

/// One pass of a reaper that may be made to die, or meet an outage.
async fn pass(app: &TestApp, pass: Pass) {
    drop(flow::survive(pass.once(&app.cx)).await);
}

/// A worker takes what there is, and dies.
async fn take_and_die(app: &TestApp) -> Vec<Leased> {
    let messages = app.cx.queue.receive(10, Duration::from_secs(3), Duration::ZERO).await.unwrap();
    take::take(&app.cx, messages).await.unwrap().leased.into_iter().map(|(run, _)| run).collect()
}

/// A run whose worker died before `at`, as a reconciler finds it.
async fn claim_and_die(app: &TestApp, tenant: &Tenant, at: CrashPoint) {
    app.submit(tenant, "one", "1").await;
    app.cx.crash.arm(at, Fault::DiesBefore);
    app.work().await;
    app.move_clock(TimeDelta::seconds(4));
}

/// A worker with its beat, from the first message until `enough`; then it is told to stop at once.
async fn in_work(app: &TestApp, enough: impl AsyncFnMut() -> bool) {
    let (soft, hard) = (CancellationToken::new(), CancellationToken::new());
    let worker = tokio::spawn(worker::run(Arc::clone(&app.cx), 4, soft.clone(), hard.clone()));
    until("the worker is where it should be", enough).await;
    if app.cx.crash.fired() {
        // A beat was to fail, not the work.
        app.script.go_on();
    } else {
        hard.cancel();
    }
    soft.cancel();
    worker.await.unwrap();
}

/// Another object lies where the winner's should: its receipt is of another run.
async fn forge(place: &Place) {
    let key = place.sql("SELECT result_key FROM runs").await[0][0].clone().unwrap();
    let (s3, bucket) = place.s3();
    let forged = s3.put_object().bucket(bucket).key(&key).metadata("actual-cost-usd-micros", "999900");
    forged.body(b"forged".to_vec().into()).send().await.unwrap();
}

async fn resolve(app: &TestApp) {
    let run_id = app.place.sql("SELECT run_id FROM runs").await[0][0].clone().unwrap();
    let charge = "0.25".parse().unwrap();
    let outcome = flow::resolve::resolve(&app.cx, run_id.parse().unwrap(), charge, "It was forged.").await;
    drop(outcome);
}

async fn cancel(app: &TestApp, tenant: &Tenant, run_id: RunId) -> u16 {
    let request = app.request(reqwest::Method::POST, &format!("/v1/runs/{run_id}/cancel"));
    app.send(request.bearer_auth(&tenant.key)).await.status
}

/// What a client is told whose one effect failed.
fn unanswered(fault: Fault) -> u16 {
    match fault {
        Fault::DiesBefore | Fault::DiesAfter => 500,
        Fault::AnswerLost | Fault::NotApplied => 503,
    }
}

async fn deposit_more(app: &TestApp, tenant: &Tenant) {
    drop(deposit::deposit(&app.cx, tenant.id, "5".parse().unwrap(), "more").await);
}

/// Lives one case to its end. Returns the effects that its recovery came to.
async fn live(case: Case) -> BTreeSet<CrashPoint> {
    let app = TestApp::with(&case.lost.settings()).await;
    let tenant = app.tenant("10").await;
    let stage = Box::pin(reach(&app, &tenant, case)).await;
    if let (Some(status), Some(accepted)) = (stage.answered, accepted(case.at, case.fault)) {
        let said = match status {
            202 => true,
            500 | 503 => false,
            other => panic!("the client was answered {other}"),
        };
        assert_eq!(said, accepted, "the client was answered {status}");
    }

    let mut app = app.restart();
    app.script.go_on();
    if let Some((at, fault)) = case.second {
        app.cx.crash.arm(at, fault);
        recover(&app).await;
        assert!(app.cx.crash.fired(), "the recovery does not come to its fault");
        app = app.restart();
        app.script.go_on();
    }
    recover(&app).await;
    app.quiet().await;
    let passed = app.cx.crash.passed();

    if case.at == CrashPoint::ResolveEnd {
        resolve(&app).await;
    }
    check(&app, &tenant, case, &stage).await;
    try_again(&app, &tenant, case, &stage).await;
    app.finish().await;
    passed
}

/// One round of everything that repairs, with all grace periods over.
async fn recover(app: &TestApp) {
    app.move_clock(TimeDelta::seconds(20));
    for _ in 0..2 {
        // The one that dies, and its successor.
        for each in Pass::ALL.into_iter().chain(Pass::ALL) {
            pass(app, each).await;
        }
        app.work().await;
    }
}

/// The verdict, to the micro.
async fn check(app: &TestApp, tenant: &Tenant, case: Case, stage: &Stage) {
    let rows = app
        .place
        .sql("SELECT status, coalesce(actual_cost_usd_micros, -1), attempts, money_state, version FROM runs")
        .await;
    let found: Vec<_> = rows
        .iter()
        .map(|row| {
            let number = |column: usize| row[column].as_deref().unwrap().parse::<i64>().unwrap();
            (row[0].clone().unwrap(), number(1), number(2), row[3].clone().unwrap())
        })
        .collect();
    let (status, cost, attempts) = match (expected(case.at, case.fault), case.lost) {
        (NoRun, _) => {
            assert!(found.is_empty(), "no run: {found:?}");
            return balance(app, tenant, case, stage, 0, 0).await;
        }
        (AuditRequired, _) => {
            let [(status, -1, _, money_state)] = &found[..] else { panic!("one open run: {found:?}") };
            assert_eq!((status.as_str(), money_state.as_str()), ("PROCESSING", "AUDIT_REQUIRED"));
            return balance(app, tenant, case, stage, CAP, 0).await;
        }
        (Ended(status, cost, attempts), _) => (status, cost, attempts),
        (AttemptLost(status, cost), Lost::Retried) => (status, cost, 2),
        (AttemptLost(..), Lost::MinimumFee) => ("FAILED", MINIMUM_FEE, 1),
        (AttemptLost(..), Lost::Refund) => ("FAILED", 0, 1),
    };
    let [(found_status, found_cost, found_attempts, money_state)] = &found[..] else {
        panic!("one run: {found:?}");
    };
    match case.second {
        None => assert_eq!((found_status.as_str(), *found_cost, *found_attempts), (status, cost, attempts)),
        // The second fault may have cost an attempt more, which is never the buyer's.
        Some(_) => assert_eq!((found_status.as_str(), *found_cost), (status, cost), "{found:?}"),
    }
    assert_eq!(money_state, if cost > 0 { "SETTLED" } else { "REFUNDED" });
    balance(app, tenant, case, stage, 0, cost).await;
}

async fn balance(app: &TestApp, tenant: &Tenant, case: Case, stage: &Stage, held: i64, charged: i64) {
    use Fault::{AnswerLost, DiesAfter};
    // Only a deposit that was committed counts.
    let more = match (case.at, case.fault) {
        (CrashPoint::DepositCommit, DiesAfter | AnswerLost) => MORE,
        _ => 0,
    };
    assert!(more == 0 || stage.deposited);
    let usd = |micros| UsdMicros::new(micros).unwrap();
    let balance = Balance {
        deposited: usd(DEPOSIT + more),
        available: usd(DEPOSIT + more - held - charged),
        held: usd(held),
        charged: usd(charged),
    };
    assert_eq!(app.cx.store.balance(tenant.id).await.unwrap(), balance);
}

/// Whoever had no answer asks again, and has one run, paid once.
async fn try_again(app: &TestApp, tenant: &Tenant, case: Case, stage: &Stage) {
    let before = app.place.sql("SELECT run_id, status, actual_cost_usd_micros FROM runs").await;
    if stage.deposited {
        deposit_more(app, tenant).await;
        // All of it can be spent.
        let all = app.post(tenant, "all", &decision("15")).await;
        assert_eq!(all.status, 202, "{all:?}");
        app.work().await;
    }
    let again = app.post(tenant, "one", &stage.body).await;
    if matches!(case.at, CrashPoint::RetainPurge | CrashPoint::RetainMark) {
        assert_eq!((again.status, again.slug()), (410, "run-expired"), "{again:?}");
        return;
    }
    assert_eq!(again.status, 202, "{again:?}");
    if let Some(run) = before.first() {
        assert_eq!(Some(again.run_id().to_string()), run[0]);
        assert_eq!(app.place.sql("SELECT run_id, status, actual_cost_usd_micros FROM runs").await, before);
    } else {
        app.work().await;
        let run = app.run(tenant, again.run_id()).await;
        assert_eq!(
            (&run["status"], &run["actual_cost_usd"]),
            (&json!("COMPLETED"), &json!("0.0120")),
            "{run}"
        );
    }
}

/// Lives many cases, some at once, each in a runtime of its own, as each process is; says which fail.
fn live_all(cases: Vec<Case>) -> Vec<(Case, BTreeSet<CrashPoint>)> {
    let count = cases.len();
    let (waiting, lived) = (Mutex::new(cases), Mutex::new(Vec::new()));
    let worker = || {
        loop {
            let Some(case) = waiting.lock().unwrap().pop() else { break };
            let life = std::panic::catch_unwind(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(live(case))
            });
            lived.lock().unwrap().push((case, life));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            // Unoptimized futures are large.
            std::thread::Builder::new().stack_size(32 << 20).spawn_scoped(scope, worker).unwrap();
        }
    });
    let lived = lived.into_inner().unwrap();
    let failed: Vec<_> = lived.iter().filter(|(_, life)| life.is_err()).map(|(case, _)| case).collect();
    assert!(failed.is_empty() && lived.len() == count, "{} of {count} cases fail: {failed:#?}", failed.len());
    lived.into_iter().map(|(case, life)| (case, life.unwrap())).collect()
}

fn singles() -> Vec<Case> {
    let of = |at| Fault::ALL.into_iter().map(move |fault| (at, fault));
    let with = |(at, fault)| Lost::ALL.into_iter().map(move |lost| Case { at, fault, lost, second: None });
    CrashPoint::ALL
        .into_iter()
        .flat_map(of)
        .flat_map(with)
        // The policy matters only where an attempt is lost.
        .filter(|case| case.lost == Lost::Retried || matches!(expected(case.at, case.fault), AttemptLost(..)))
        // That flow needs an attempt to be left.
        .filter(|case| case.lost == Lost::Retried || case.at != CrashPoint::ExpireRequeue)
        .collect()
}

/// Pairs: what a first fault leaves, and each effect of its repair failing in turn. Faults that leave the
/// same behind are one: their repair comes to the same effects, and to the same verdict.
fn pairs(singles: &[(Case, BTreeSet<CrashPoint>)], all: bool) -> Vec<Case> {
    let mut left: HashSet<(Verdict, &BTreeSet<CrashPoint>)> = HashSet::new();
    singles
        .iter()
        .filter(|(case, repair)| all || left.insert((expected(case.at, case.fault), repair)))
        .flat_map(|(case, repair)| repair.iter().map(move |second| (*case, *second)))
        .flat_map(|(case, at)| Fault::ALL.map(|fault| Case { second: Some((at, fault)), ..case }))
        .collect()
}

/// `MATRIX=full` lives all pairs, which takes a while.
#[test]
fn whatever_fails_wherever_the_verdict_is_exact() {
    let all = std::env::var("MATRIX").is_ok_and(|which| which == "full");
    let mut lived = live_all(singles());
    lived.sort_by_key(|(case, _)| (case.at, format!("{case:?}")));
    let (single, pairs) = (lived.len(), pairs(&lived, all));
    let pairs = live_all(pairs).len();
    say(&format!("crash matrix: {single} single faults and {pairs} pairs"));
}
