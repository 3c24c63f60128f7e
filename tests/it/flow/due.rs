//! What the store is asked for by whoever repairs: all of what is due and nothing else, page by page, and of one
//! tenant nothing of another's.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use dpp::{
    domain::{
        id::{RunId, TenantId},
        run::{Cas, Claimed, Leased, Reason},
    },
    store::{Deposit, Ending, Guard},
};

use crate::harness::{Tenant, TestApp};

const LEASE: Duration = Duration::from_secs(3);
const HOUR: Duration = Duration::from_secs(3_600);

async fn waiting(app: &TestApp, tenant: &Tenant, key: &str) -> RunId {
    app.submit(tenant, key, "1").await
}

async fn leased(app: &TestApp, tenant: &Tenant, key: &str) -> Leased {
    let run_id = waiting(app, tenant, key).await;
    app.cx.store.take(&[run_id], LEASE).await.unwrap().remove(0)
}

async fn claimed(app: &TestApp, tenant: &Tenant, key: &str) -> Claimed {
    let run = leased(app, tenant, key).await;
    let claim = app.cx.store.claim(&run, format!("{key}/object"), "0".repeat(64), "0.5".parse().unwrap());
    let Cas::Won(claimed) = claim.await.unwrap() else { panic!("the claim is lost") };
    claimed
}

/// Ended at its whole hold.
async fn ended(app: &TestApp, tenant: &Tenant, key: &str) -> RunId {
    let run = leased(app, tenant, key).await;
    let ending = Ending::Failed(run.reserved, Reason::pack_crashed());
    let end = app.cx.store.end(run.run_id, tenant.id, run.trace_id, Guard::of_lease(&run), ending);
    assert!(matches!(end.await.unwrap(), Cas::Won(_)));
    run.run_id
}

/// Where the next page begins.
type After = Option<(DateTime<Utc>, RunId)>;

/// All pages of one row, in their order.
async fn pages(mut page: impl AsyncFnMut(After) -> After) -> Vec<RunId> {
    let (mut after, mut found) = (None, Vec::new());
    while let Some((at, run_id)) = page(after).await {
        assert!(found.len() < 10, "a page comes again: {found:?}");
        found.push(run_id);
        after = Some((at, run_id));
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_finds_all_that_is_due_page_by_page_and_nothing_else() {
    let app = TestApp::start().await;
    let tenant = app.tenant("100").await;
    let store = &app.cx.store;
    // First, so that it would be on the first page.
    let parked = claimed(&app, &tenant, "parked").await;
    assert!(matches!(store.require_audit(&parked, "why").await.unwrap(), Cas::Won(())));
    let purged = ended(&app, &tenant, "purged").await;
    let waits = [waiting(&app, &tenant, "w1").await, waiting(&app, &tenant, "w2").await];
    let leases = [leased(&app, &tenant, "l1").await.run_id, leased(&app, &tenant, "l2").await.run_id];
    let claims = [claimed(&app, &tenant, "c1").await.run_id(), claimed(&app, &tenant, "c2").await.run_id()];
    let ends = [ended(&app, &tenant, "e1").await, ended(&app, &tenant, "e2").await];
    assert!(!store.mark_purged(purged).await.unwrap(), "it is still shown");

    app.move_clock(TimeDelta::days(90) + TimeDelta::seconds(10));
    let kept = format!("UPDATE runs SET metadata = '{{\"a\": 1}}' WHERE run_id = '{purged}'");
    app.place.sql(&kept).await;
    assert!(store.mark_purged(purged).await.unwrap());
    assert!(!store.mark_purged(purged).await.unwrap(), "once");
    let left = format!("SELECT inputs::text, metadata::text FROM runs WHERE run_id = '{purged}'");
    assert_eq!(app.place.sql(&left).await, [[None, Some("{}".to_owned())]]);
    waiting(&app, &tenant, "young-w").await;
    leased(&app, &tenant, "young-l").await;
    claimed(&app, &tenant, "young-c").await;
    ended(&app, &tenant, "young-e").await;

    let found = pages(async |after| {
        let due = store.due_leases(after, 1).await.unwrap();
        due.first().map(|due| (due.guard.lease_expires_at.unwrap(), due.run_id))
    });
    assert_eq!(found.await, leases);
    let found = pages(async |after| {
        let due = store.due_claims(HOUR, after, 1).await.unwrap();
        due.first().map(|due| (due.claimed.claim().claimed_at, due.claimed.run_id()))
    });
    assert_eq!(found.await, claims);
    let found = pages(async |after| {
        let due = store.due_expiries(HOUR, after, 1).await.unwrap();
        due.first().map(|due| (due.created_at, due.run_id))
    });
    assert_eq!(found.await, waits);
    let found = pages(async |after| {
        let due = store.due_purges(after, 1).await.unwrap();
        due.first().map(|due| (due.retention_until, due.run_id))
    });
    assert_eq!(found.await, ends);
    // A run that is sent is marked, and leaves the scan.
    let mut found = Vec::new();
    while let Some(due) = store.due_sends(LEASE, false, 1).await.unwrap().first() {
        found.push(due.run_id);
    }
    assert_eq!(found, waits);

    let rows = store.open_runs(tenant.id, HOUR).await.unwrap();
    let old: Vec<_> = rows.iter().filter(|(_, settled_in)| *settled_in).map(|(run_id, _)| *run_id).collect();
    assert_eq!((rows.len(), old.len()), (10, 7));
    assert!([waits, leases, claims].concat().iter().all(|run_id| old.contains(run_id)));
    app.move_clock(TimeDelta::seconds(10));
    // More messages wake nobody than a worker gets at once.
    app.quiet().await;
    app.finish().await;
}

/// Putting off follows a sending; whatever became of the run in between stands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sending_is_put_off_for_its_own_run_as_it_was_marked() {
    let app = TestApp::start().await;
    let tenant = app.tenant("100").await;
    let store = &app.cx.store;
    for key in ["put-off", "marked-again", "taken", "other"] {
        waiting(&app, &tenant, key).await;
    }
    app.move_clock(TimeDelta::minutes(10));
    let due = store.due_sends(LEASE, false, 10).await.unwrap();
    let next = async |run_id: RunId| {
        let sql = format!(
            "SELECT round(extract(epoch FROM next_send_at - created_at) / 60) FROM runs WHERE run_id = '{run_id}'"
        );
        app.place.sql(&sql).await[0][0].clone().unwrap()
    };
    app.place
        .sql(&format!(
            "UPDATE runs SET next_send_at = next_send_at + interval '1 second' WHERE run_id = '{}'",
            due[1].run_id
        ))
        .await;
    assert_eq!(store.take(&[due[2].run_id], LEASE).await.unwrap().len(), 1);

    for due in &due[..3] {
        store.put_off_send(due, LEASE).await.unwrap();
    }

    // As long again as it has waited; the rest at the end of their marks.
    for (due, minutes) in due.iter().zip(["20", "10", "10", "10"]) {
        assert_eq!(next(due.run_id).await, minutes);
    }
    // An hour at most, and at least as long as was asked for.
    app.move_clock(TimeDelta::hours(5));
    let old = due[0].run_id;
    let again = store.due_sends(LEASE, false, 10).await.unwrap();
    store.put_off_send(again.iter().find(|due| due.run_id == old).unwrap(), LEASE).await.unwrap();
    assert_eq!(next(old).await, "370");
    let young = waiting(&app, &tenant, "young").await;
    app.move_clock(TimeDelta::seconds(60));
    let due = store.due_sends(LEASE, false, 10).await.unwrap();
    let due = due.iter().find(|due| due.run_id == young).unwrap();
    store.put_off_send(due, Duration::from_secs(540)).await.unwrap();
    assert_eq!(next(young).await, "10");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_one_tenant_nothing_is_told_that_is_anothers() {
    let app = TestApp::start().await;
    let (tenant, other) = (app.tenant("100").await, app.tenant("50").await);
    let store = &app.cx.store;
    let (open, gone) = (waiting(&app, &tenant, "open").await, ended(&app, &tenant, "gone").await);
    let in_work = leased(&app, &tenant, "in-work").await.run_id;
    let theirs = [waiting(&app, &other, "open").await, ended(&app, &other, "gone").await];

    let dollar = "1".parse().unwrap();
    let mut holds = store.open_holds(tenant.id).await.unwrap();
    holds.sort_by_key(|(run_id, _)| run_id.0);
    assert_eq!(holds, [(open, dollar), (in_work, dollar)]);
    let mut runs = store.open_runs(tenant.id, HOUR).await.unwrap();
    runs.sort_by_key(|(run_id, _)| run_id.0);
    assert_eq!(runs, [(open, false), (in_work, false)]);
    let all = [[open, gone], theirs].concat();
    let outcomes = async |runs: &[RunId]| {
        let outcomes = store.outcomes(tenant.id, runs).await.unwrap();
        outcomes.into_iter().map(|(run_id, ended)| (run_id, ended.is_some())).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(outcomes(&all).await, BTreeMap::from([(open, false), (gone, true)]), "theirs are theirs");
    assert_eq!(outcomes(&[open]).await, BTreeMap::from([(open, false)]), "nobody asked for the other");
    assert!(store.find_owned(tenant.id, open).await.unwrap().is_some());
    assert!(store.find_owned(other.id, open).await.unwrap().is_none());
    let epochs = [store.epoch(tenant.id).await.unwrap(), store.epoch(other.id).await.unwrap()];
    assert_ne!(epochs[0], epochs[1]);

    // One at a time: each holds its tenant's lock.
    let mut books = store.lock_books(tenant.id).await.unwrap().unwrap();
    assert_eq!(Some(books.epoch()), epochs[0]);
    let holds = books.open_holds().await.unwrap();
    let mut holds: Vec<_> = holds.iter().map(|hold| hold.run_id).collect();
    holds.sort_by_key(|run_id| run_id.0);
    assert_eq!(holds, [open, in_work]);
    assert_eq!(books.deposit("1".parse().unwrap(), "mine").await.unwrap(), Deposit::Posted);
    books.raise_epoch().await.unwrap();
    books.commit().await.unwrap();
    assert_eq!(store.epoch(other.id).await.unwrap(), epochs[1], "another's epoch goes on");
    assert!(store.lock_books(TenantId::new()).await.unwrap().is_none());
    let mut books = store.lock_books(other.id).await.unwrap().unwrap();
    assert_eq!(Some(books.epoch()), epochs[1]);
    assert_eq!(books.deposit("2".parse().unwrap(), "mine").await.unwrap(), Deposit::Posted);
    books.raise_epoch().await.unwrap();
    books.commit().await.unwrap();
    app.move_clock(TimeDelta::seconds(4));
    app.finish().await;
}

/// A wish is for a run in work, and told to whoever works on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wish_is_for_one_run_in_work_of_the_tenant() {
    let app = TestApp::start().await;
    let (tenant, other) = (app.tenant("100").await, app.tenant("50").await);
    let store = &app.cx.store;
    let wish = async |tenant: &Tenant, run_id| {
        matches!(store.request_cancel(tenant.id, run_id).await.unwrap(), Cas::Won(()))
    };
    let parked = claimed(&app, &tenant, "parked").await;
    assert!(matches!(store.require_audit(&parked, "why").await.unwrap(), Cas::Won(())));
    let (waits, gone) = (waiting(&app, &tenant, "waits").await, ended(&app, &tenant, "gone").await);
    for run_id in [parked.run_id(), waits, gone] {
        assert!(!wish(&tenant, run_id).await);
    }
    let (run, neighbour) = (leased(&app, &tenant, "run").await, leased(&app, &tenant, "neighbour").await);
    assert!(!wish(&other, run.run_id).await);
    let both = [run.run_id, neighbour.run_id];
    assert!(store.to_cancel(&both).await.unwrap().is_empty());

    assert!(wish(&tenant, run.run_id).await);

    assert_eq!(store.to_cancel(&both).await.unwrap(), [run.run_id]);
    assert!(store.to_cancel(&both[1..]).await.unwrap().is_empty(), "nobody asked for the other");
    let wishes = "SELECT cancel_requested_at FROM runs WHERE cancel_requested_at IS NOT NULL";
    let first = app.place.sql(wishes).await;
    assert!(wish(&tenant, run.run_id).await);
    assert_eq!(app.place.sql(wishes).await, first, "the first wish counts, and there is one");
    app.move_clock(TimeDelta::seconds(4));
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_worker_is_told_from_what_does_not() {
    let app = TestApp::start().await;
    let (tenant, suspended) = (app.tenant("100").await, app.tenant("50").await);
    let store = &app.cx.store;
    let (waits, neighbour) = (waiting(&app, &tenant, "waits").await, waiting(&app, &tenant, "other").await);
    let in_work = leased(&app, &tenant, "run").await;
    let (run, idle) = (in_work.run_id, waiting(&app, &suspended, "idle").await);
    store.set_suspended(suspended.id, true).await.unwrap();

    let all = [waits, run, idle, RunId::new()];
    assert_eq!(store.still_waiting(&all).await.unwrap(), [waits]);
    assert_eq!(store.known(&all).await.unwrap().len(), 3);

    // Only those are sent, and only when they are due.
    app.move_clock(TimeDelta::seconds(4));
    let sent = async |starving| {
        let due = store.due_sends(LEASE, starving, 10).await.unwrap();
        let mut sent: Vec<_> = due.iter().map(|due| due.run_id).collect();
        sent.sort_by_key(|run_id| run_id.0);
        sent
    };
    assert_eq!(sent(false).await, [waits, neighbour]);
    assert!(sent(false).await.is_empty(), "they are marked");
    // With the queue empty what was put off is due after all, unless it is so anyway before long.
    let put_off = format!(
        "UPDATE runs SET next_send_at = next_send_at + interval '1 hour' WHERE run_id IN ('{waits}', '{idle}', '{run}')"
    );
    app.place.sql(&put_off).await;
    assert!(sent(false).await.is_empty());
    let fresh = waiting(&app, &tenant, "fresh").await;
    app.place
        .sql(&format!(
            "UPDATE runs SET next_send_at = next_send_at + interval '1 hour' WHERE run_id = '{fresh}'"
        ))
        .await;
    assert_eq!(sent(true).await, [waits]);
    // A deployment that lost its queue sends all that waits.
    let others = format!("SELECT * FROM runs WHERE run_id = '{run}'");
    let before = app.place.sql(&others).await;
    store.resend_all().await.unwrap();
    assert_eq!(sent(false).await, [waits, neighbour, fresh]);
    assert_eq!(app.place.sql(&others).await, before);
    // One that is put back is due at once, however long it was put off.
    assert!(matches!(store.requeue(run, Guard::of_lease(&in_work), true).await.unwrap(), Cas::Won(())));
    assert_eq!(sent(false).await, [run]);
    store.set_suspended(suspended.id, false).await.unwrap();
    app.move_clock(TimeDelta::seconds(4));
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_is_due_for_a_snapshot_when_its_tail_is_longer_than_asked_for() {
    let app = TestApp::start().await;
    let (tenant, other) = (app.tenant("100").await, app.tenant("100").await);
    let store = &app.cx.store;
    let snapshot = async || {
        let mut books = store.lock_books(tenant.id).await.unwrap().unwrap();
        books.snapshot().await.unwrap();
        books.commit().await.unwrap();
    };
    // A deposit each, and two holds that the other does not have.
    for round in 0..3 {
        assert!(store.tenants_to_snapshot(2, 10).await.unwrap().is_empty(), "{round}");
        for key in ["a", "b", "c"] {
            waiting(&app, &tenant, &format!("{round}{key}")).await;
        }
        assert_eq!(store.tenants_to_snapshot(2, 10).await.unwrap(), [tenant.id], "{round}");
        snapshot().await;
        assert!(store.tenants_to_snapshot(0, 10).await.unwrap() == [other.id], "{round}");
        // Two more are not more than two.
        for key in ["d", "e"] {
            waiting(&app, &tenant, &format!("{round}{key}")).await;
        }
        assert!(store.tenants_to_snapshot(2, 10).await.unwrap().is_empty(), "{round}");
        snapshot().await;
    }
    app.finish().await;
}
