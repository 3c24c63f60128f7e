//! Every compare-and-set, and every way in which the row may differ from what its caller saw: one thing at
//! a time. The caller has lost, and nothing at all has changed. Conditions that only together seem to do
//! their work are each shown to do it alone.

use std::time::Duration;

use chrono::TimeDelta;
use dpp::{
    domain::{
        id::RunId,
        money::UsdMicros,
        run::{Cas, Claimed, Leased, Reason},
    },
    flow::resolve::{Resolved, resolve},
    store::{Ending, Guard},
};

use crate::harness::{Tenant, TestApp, until};

const LEASE: Duration = Duration::from_secs(3);

const OTHER_VERSION: &str = "version = version + 1";
const OTHER_LEASE: &str = "lease_token = gen_random_uuid()";
const RENEWED: &str = "lease_expires_at = lease_expires_at + interval '1 second'";
const OTHER_CLAIM: &str = "finalize_token = gen_random_uuid()";
const QUEUED: &str = "status = 'QUEUED', lease_token = NULL, lease_expires_at = NULL";
const LEASED: &str =
    "status = 'PROCESSING', finalize_stage = NULL, lease_token = gen_random_uuid(), lease_expires_at = now()";
const CLAIMED: &str = "status = 'PROCESSING', finalize_stage = 'CLAIMED', finalize_token = gen_random_uuid(), \
    claimed_at = now(), claim_cost_usd_micros = 0, result_key = 'x', result_sha256 = 'x', lease_token = NULL, lease_expires_at = NULL";
const PARKED: &str = "money_state = 'AUDIT_REQUIRED', reason_code = 'x', reason_detail = 'x'";
const UNPARKED: &str = "money_state = 'RESERVED', reason_code = NULL, reason_detail = NULL";

/// A compare-and-set, by who makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    TakenByWorker,
    RenewedByWorker,
    ClaimedByWorker,
    FailedByWorker,
    HandedBackByWorker,
    EndedByReaper,
    RequeuedByReaper,
    CompletedUnderClaim,
    RequeuedUnderClaim,
    ParkedUnderClaim,
    ResolvedByOperator,
    ExpiredInQueue,
    StoppedByWorker,
    CancelledInQueue,
}
use Change::{
    CancelledInQueue, ClaimedByWorker, CompletedUnderClaim, EndedByReaper, ExpiredInQueue, FailedByWorker,
    HandedBackByWorker, ParkedUnderClaim, RenewedByWorker, RequeuedByReaper, RequeuedUnderClaim,
    ResolvedByOperator, StoppedByWorker, TakenByWorker,
};

/// Each change, and what must make it lose.
const TABLE: [(Change, &[&str]); 14] = [
    (TakenByWorker, &[LEASED, CLAIMED]),
    (RenewedByWorker, &[OTHER_LEASE, QUEUED, CLAIMED]),
    (ClaimedByWorker, &[OTHER_VERSION, OTHER_LEASE, QUEUED, CLAIMED]),
    (FailedByWorker, &[OTHER_VERSION, OTHER_LEASE, QUEUED, CLAIMED]),
    (HandedBackByWorker, &[OTHER_VERSION, OTHER_LEASE, QUEUED, CLAIMED]),
    (EndedByReaper, &[OTHER_VERSION, OTHER_LEASE, RENEWED, QUEUED, CLAIMED]),
    (RequeuedByReaper, &[OTHER_VERSION, OTHER_LEASE, RENEWED, QUEUED, CLAIMED]),
    (CompletedUnderClaim, &[OTHER_VERSION, OTHER_CLAIM, PARKED, LEASED]),
    (RequeuedUnderClaim, &[OTHER_VERSION, OTHER_CLAIM, PARKED, LEASED]),
    (ParkedUnderClaim, &[OTHER_VERSION, OTHER_CLAIM, PARKED, LEASED]),
    (ResolvedByOperator, &[OTHER_VERSION, OTHER_CLAIM, UNPARKED]),
    (ExpiredInQueue, &[OTHER_VERSION, LEASED, CLAIMED]),
    (StoppedByWorker, &[OTHER_VERSION, OTHER_LEASE, QUEUED, CLAIMED]),
    (CancelledInQueue, &[OTHER_VERSION, LEASED, CLAIMED]),
];

/// What a caller holds when it makes its change.
enum Seen {
    Queued(Guard),
    Leased(Leased, Guard),
    Claimed(Claimed),
    Parked(Guard),
}

/// Brings a fresh run to where `change` begins.
async fn reach(app: &TestApp, tenant: &Tenant, change: Change, key: &str) -> (RunId, Seen) {
    let run_id = app.submit(tenant, key, "1").await;
    let store = &app.cx.store;
    if matches!(change, TakenByWorker | ExpiredInQueue | CancelledInQueue) {
        return (run_id, Seen::Queued(Guard { version: 1, ..Guard::default() }));
    }
    let leased = store.take(&[run_id], LEASE).await.unwrap().remove(0);
    if matches!(
        change,
        RenewedByWorker
            | ClaimedByWorker
            | FailedByWorker
            | HandedBackByWorker
            | EndedByReaper
            | RequeuedByReaper
            | StoppedByWorker
    ) {
        app.move_clock(TimeDelta::seconds(4));
        let due = store.due_leases(None, 100).await.unwrap();
        let guard = due.iter().find(|due| due.run_id == run_id).unwrap().guard;
        app.move_clock(TimeDelta::seconds(-4));
        return (run_id, Seen::Leased(leased, guard));
    }
    let claim = store.claim(&leased, format!("{key}/object"), "0".repeat(64), "0.5".parse().unwrap()).await;
    let Cas::Won(claimed) = claim.unwrap() else { panic!("the claim is lost") };
    if change != ResolvedByOperator {
        return (run_id, Seen::Claimed(claimed));
    }
    assert!(matches!(store.require_audit(&claimed, "why").await.unwrap(), Cas::Won(())));
    let guard = Guard {
        version: claimed.version() + 1,
        finalize_token: Some(claimed.claim().token),
        awaits_audit: true,
        ..Guard::default()
    };
    (run_id, Seen::Parked(guard))
}

/// Makes the change; whether it was won.
async fn make(app: &TestApp, tenant: &Tenant, change: Change, run_id: RunId, seen: &Seen) -> bool {
    let store = &app.cx.store;
    let cost: UsdMicros = "0.5".parse().unwrap();
    let trace_id = store.find_run(run_id).await.unwrap().unwrap().trace_id;
    let end = async |guard, ending| {
        matches!(store.end(run_id, tenant.id, trace_id, guard, ending).await.unwrap(), Cas::Won(_))
    };
    let requeue = async |guard, handed_back| {
        matches!(store.requeue(run_id, guard, handed_back).await.unwrap(), Cas::Won(()))
    };
    match (change, seen) {
        (TakenByWorker, Seen::Queued(_)) => !store.take(&[run_id], LEASE).await.unwrap().is_empty(),
        (ExpiredInQueue, Seen::Queued(guard)) => {
            end(*guard, Ending::Expired(Reason::expired_in_queue())).await
        }
        (CancelledInQueue, Seen::Queued(guard)) => end(*guard, Ending::Cancelled(UsdMicros::ZERO)).await,
        (StoppedByWorker, Seen::Leased(run, _)) => end(Guard::of_lease(run), Ending::Cancelled(cost)).await,
        (RenewedByWorker, Seen::Leased(run, _)) => {
            !store.beat(&[(run_id, run.token)], LEASE).await.unwrap().is_empty()
        }
        (ClaimedByWorker, Seen::Leased(run, _)) => {
            let claim = store.claim(run, "key".to_owned(), "0".repeat(64), cost).await;
            matches!(claim.unwrap(), Cas::Won(_))
        }
        (FailedByWorker, Seen::Leased(run, _)) => {
            end(Guard::of_lease(run), Ending::Failed(cost, Reason::pack_crashed())).await
        }
        (HandedBackByWorker, Seen::Leased(run, _)) => requeue(Guard::of_lease(run), true).await,
        (EndedByReaper, Seen::Leased(_, guard)) => end(*guard, Ending::Failed(cost, Reason::lost(3))).await,
        (RequeuedByReaper, Seen::Leased(_, guard)) => requeue(*guard, false).await,
        (CompletedUnderClaim, Seen::Claimed(claimed)) => {
            end(Guard::of_claim(claimed), Ending::Completed(cost)).await
        }
        (RequeuedUnderClaim, Seen::Claimed(claimed)) => requeue(Guard::of_claim(claimed), false).await,
        (ParkedUnderClaim, Seen::Claimed(claimed)) => {
            matches!(store.require_audit(claimed, "why").await.unwrap(), Cas::Won(()))
        }
        (ResolvedByOperator, Seen::Parked(guard)) => {
            end(*guard, Ending::Failed(cost, Reason::pack_crashed())).await
        }
        _ => panic!("{change:?} begins elsewhere"),
    }
}

async fn table(app: &TestApp, name: &str, but: Option<RunId>) -> Vec<Vec<Option<String>>> {
    let but = but.map_or(String::new(), |run_id| format!(" WHERE run_id IS DISTINCT FROM '{run_id}'"));
    app.place.sql(&format!("SELECT row.*::text FROM {name} AS row{but} ORDER BY 1")).await
}

/// Leaves nothing open, so that the next case begins on a clean table.
async fn clear(app: &TestApp) {
    app.place.sql("ALTER TABLE ledger_transfers DISABLE TRIGGER USER").await;
    app.place.sql("DELETE FROM ledger_transfers WHERE run_id IS NOT NULL").await;
    app.place.sql("ALTER TABLE ledger_transfers ENABLE TRIGGER USER").await;
    app.place.sql("DELETE FROM runs").await;
    let _: String = app.place.redis(&["FLUSHDB"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_saw_another_row_has_lost_and_changes_nothing() {
    let app = TestApp::start().await;
    let tenant = app.tenant("100").await;
    for (change, deviations) in TABLE {
        for deviation in deviations {
            let (run_id, seen) = reach(&app, &tenant, change, "one").await;
            app.place.sql(&format!("UPDATE runs SET {deviation} WHERE run_id = '{run_id}'")).await;
            let before = (table(&app, "runs", None).await, table(&app, "ledger_transfers", None).await);
            assert!(
                !make(&app, &tenant, change, run_id, &seen).await,
                "{change:?} is won although {deviation}"
            );
            let after = (table(&app, "runs", None).await, table(&app, "ledger_transfers", None).await);
            assert_eq!(before, after, "{change:?} was lost and changed something");
            clear(&app).await;
        }
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_saw_the_row_as_it_is_wins_once_and_touches_no_other() {
    let app = TestApp::start().await;
    let tenant = app.tenant("100").await;
    for (change, _) in TABLE {
        let (run_id, seen) = reach(&app, &tenant, change, "one").await;
        // Another run in the very same state.
        reach(&app, &tenant, change, "two").await;
        let others =
            (table(&app, "runs", Some(run_id)).await, table(&app, "ledger_transfers", Some(run_id)).await);
        let version = app.cx.store.find_run(run_id).await.unwrap().unwrap().version;
        assert!(make(&app, &tenant, change, run_id, &seen).await, "{change:?} is lost");
        let raised = app.cx.store.find_run(run_id).await.unwrap().unwrap().version - version;
        assert_eq!(
            raised,
            i64::from(change != RenewedByWorker),
            "{change:?}: a version counts changes of state"
        );
        // A lease may be renewed again and again; all else is done once.
        assert_eq!(
            make(&app, &tenant, change, run_id, &seen).await,
            change == RenewedByWorker,
            "{change:?}, again"
        );
        let after =
            (table(&app, "runs", Some(run_id)).await, table(&app, "ledger_transfers", Some(run_id)).await);
        assert_eq!(others, after, "{change:?} touched another run");
        clear(&app).await;
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_run_ends_on_another_tenants_books() {
    let app = TestApp::start().await;
    let (tenant, other) = (app.tenant("100").await, app.tenant("100").await);
    let ends = [
        FailedByWorker,
        StoppedByWorker,
        EndedByReaper,
        CompletedUnderClaim,
        ResolvedByOperator,
        ExpiredInQueue,
        CancelledInQueue,
    ];
    for change in ends {
        let (run_id, seen) = reach(&app, &tenant, change, "one").await;
        let before = (table(&app, "runs", None).await, table(&app, "ledger_transfers", None).await);
        assert!(!make(&app, &other, change, run_id, &seen).await, "{change:?} is won by another's name");
        let after = (table(&app, "runs", None).await, table(&app, "ledger_transfers", None).await);
        assert_eq!(before, after, "{change:?} was lost and changed something");
        clear(&app).await;
    }
    app.finish().await;
}

/// To the grain, at both ends: what is not charged is released, and nothing is booked that is nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_ends_in_a_charge_and_a_release_that_add_up_to_it() {
    let app = TestApp::start().await;
    let tenant = app.tenant("100").await;
    let cases = [
        ("0", "hold 1000000,release 1000000"),
        ("0.0001", "charge 100,hold 1000000,release 999900"),
        ("0.9999", "charge 999900,hold 1000000,release 100"),
        ("1", "charge 1000000,hold 1000000"),
    ];
    for (cost, booked) in cases {
        let run_id = app.submit(&tenant, cost, "1").await;
        let leased = app.cx.store.take(&[run_id], LEASE).await.unwrap().remove(0);
        let ending = Ending::Failed(cost.parse().unwrap(), Reason::pack_crashed());
        let end = app.cx.store.end(run_id, tenant.id, leased.trace_id, Guard::of_lease(&leased), ending);
        let Cas::Won(settled) = end.await.unwrap() else { panic!("the end is lost") };
        app.cx.budget.settle(&settled).await.unwrap();
        let rows = format!(
            "SELECT string_agg(kind || ' ' || amount_usd_micros, ',' ORDER BY kind) FROM ledger_transfers
             WHERE run_id = '{run_id}'"
        );
        assert_eq!(app.place.sql(&rows).await, [[Some(booked.to_owned())]], "{cost}");
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_charges_from_nothing_to_the_whole_hold() {
    let app = TestApp::start().await;
    let tenant = app.tenant("100").await;
    for charge in ["0", "0.0001", "0.9999", "1"] {
        let (run_id, _) = reach(&app, &tenant, ResolvedByOperator, charge).await;
        let too_much = resolve(&app.cx, run_id, "1.0001".parse().unwrap(), "x").await.unwrap();
        assert!(matches!(too_much, Resolved::AboveHold { .. }), "{too_much:?}");
        let resolved = resolve(&app.cx, run_id, charge.parse().unwrap(), "x").await.unwrap();
        let Resolved::Ended(run) = resolved else { panic!("{resolved:?}") };
        assert_eq!(run.state.charge(), Some(charge.parse().unwrap()));
    }
    app.finish().await;
}

/// By the database's clock, from the moment that it is taken or renewed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_lasts_as_long_as_was_asked_for() {
    let app = TestApp::start().await;
    let tenant = app.tenant("100").await;
    let run_id = app.submit(&tenant, "one", "1").await;
    let store = &app.cx.store;
    let due = async || store.due_leases(None, 10).await.unwrap().len();
    let minutes = Duration::from_secs(180);
    let run = store.take(&[run_id], minutes).await.unwrap().remove(0);
    for lasts in ["as it was taken", "as it was renewed"] {
        app.move_clock(TimeDelta::minutes(2));
        assert_eq!(due().await, 0, "{lasts}");
        assert_eq!(store.beat(&[(run_id, run.token)], minutes).await.unwrap(), [run_id]);
    }
    app.move_clock(TimeDelta::minutes(4));
    assert_eq!(due().await, 1, "no longer");
    app.finish().await;
}

/// The next attempt's claim, cost and result are its own; what counts is the attempt, and when the first began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_lost_attempt_stays_with_the_run() {
    let app = TestApp::start().await;
    let tenant = app.tenant("100").await;
    for (change, attempts) in [(HandedBackByWorker, 0), (RequeuedByReaper, 1), (RequeuedUnderClaim, 1)] {
        let (run_id, seen) = reach(&app, &tenant, change, "one").await;
        assert!(make(&app, &tenant, change, run_id, &seen).await, "{change:?} is lost");
        let left =
            "SELECT num_nonnulls(lease_token, lease_expires_at, finalize_stage, finalize_token, claimed_at,
            claim_cost_usd_micros, result_key, result_sha256) FROM runs";
        assert_eq!(app.place.sql(left).await, [[Some("0".to_owned())]], "{change:?}");
        let run = app.cx.store.find_run(run_id).await.unwrap().unwrap();
        assert_eq!(run.attempts, attempts, "{change:?}");
        assert!(run.started_at.is_some(), "{change:?}");
        app.move_clock(TimeDelta::seconds(1));
        assert_eq!(app.cx.store.take(&[run_id], LEASE).await.unwrap()[0].attempt, attempts + 1);
        let again = app.cx.store.find_run(run_id).await.unwrap().unwrap();
        assert_eq!(again.started_at, run.started_at, "{change:?}");
        clear(&app).await;
    }
    app.finish().await;
}

/// A suspended tenant's runs wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_tenants_run_is_not_taken() {
    let app = TestApp::start().await;
    let tenant = app.tenant("100").await;
    let run_id = app.submit(&tenant, "one", "1").await;
    app.cx.store.set_suspended(tenant.id, true).await.unwrap();
    assert!(app.cx.store.take(&[run_id], LEASE).await.unwrap().is_empty());
    app.cx.store.set_suspended(tenant.id, false).await.unwrap();
    assert_eq!(app.cx.store.take(&[run_id], LEASE).await.unwrap().len(), 1);
    app.move_clock(TimeDelta::seconds(4));
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_two_takings_have_one_token() {
    let app = TestApp::start().await;
    let tenant = app.tenant("100").await;
    let runs = [app.submit(&tenant, "one", "1").await, app.submit(&tenant, "two", "1").await];
    let mut tokens = std::collections::HashSet::new();
    for _ in 0..2 {
        for run in app.cx.store.take(&runs, LEASE).await.unwrap() {
            assert!(tokens.insert(run.token), "a token was given twice");
        }
        app.move_clock(TimeDelta::seconds(4));
        app.reap().await;
    }
    assert_eq!(tokens.len(), 4);
    app.finish().await;
}

/// A row that somebody is at is theirs: neither a worker nor the reaper waits for it, or keeps the rest waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_somebody_is_at_holds_up_no_other() {
    let app = TestApp::start().await;
    let tenant = app.tenant("100").await;
    let (held_up, free) = (app.submit(&tenant, "one", "1").await, app.submit(&tenant, "two", "1").await);
    let (client, connection) =
        tokio_postgres::connect(&app.place.database_url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute("BEGIN").await.unwrap();
    client.batch_execute(&format!("SELECT 1 FROM runs WHERE run_id = '{held_up}' FOR UPDATE")).await.unwrap();
    let store = &app.cx.store;

    app.move_clock(TimeDelta::seconds(4));
    let sent = store.due_sends(LEASE, false, 10).await.unwrap();
    assert_eq!(sent.iter().map(|due| due.run_id).collect::<Vec<_>>(), [free]);
    let taken = store.take(&[held_up, free], LEASE).await.unwrap();
    assert_eq!(taken.iter().map(|run| run.run_id).collect::<Vec<_>>(), [free]);

    client.batch_execute("ROLLBACK").await.unwrap();
    app.move_clock(TimeDelta::seconds(4));
    app.finish().await;
}

/// Snapshots, rebuilds and deposits rest on it: under the tenant's exclusive lock no transfer of the tenant is
/// under way. Whatever writes one holds the shared lock from before its first row until its commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_moves_money_holds_the_tenants_lock() {
    let app = TestApp::start().await;
    let tenant = app.tenant("100").await;
    let ends = app.submit(&tenant, "ends", "1").await;
    let lock = format!("SELECT pg_try_advisory_xact_lock(hashtextextended('{}', 0))", tenant.id);
    assert_eq!(app.place.sql(&lock).await[0][0].as_deref(), Some("t"), "nobody is at it");
    let waiting = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'";

    for held_up in [
        format!("SELECT 1 FROM tenants WHERE tenant_id = '{}' FOR UPDATE", tenant.id),
        format!("SELECT 1 FROM runs WHERE run_id = '{ends}' FOR UPDATE"),
    ] {
        let (client, connection) =
            tokio_postgres::connect(&app.place.database_url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute("BEGIN").await.unwrap();
        client.batch_execute(&held_up).await.unwrap();
        let moves = async {
            if held_up.contains("tenants") {
                app.submit(&tenant, "held-up", "1").await;
            } else {
                let guard = Guard { version: 1, ..Guard::default() };
                assert!(make(&app, &tenant, CancelledInQueue, ends, &Seen::Queued(guard)).await);
            }
        };
        let looks = async {
            until("it waits", async || app.place.sql(waiting).await[0][0].as_deref() != Some("0")).await;
            assert_eq!(app.place.sql(&lock).await[0][0].as_deref(), Some("f"), "{held_up}");
            client.batch_execute("ROLLBACK").await.unwrap();
        };
        tokio::join!(moves, looks);
    }
    app.finish().await;
}
