//! Cancel, through its door: what waits is free at once, what is in work stops soon and pays what it used.

use std::{sync::Arc, time::Duration};

use chrono::TimeDelta;
use dpp::{
    domain::id::RunId,
    flow::{
        crash::{CrashPoint, Fault},
        take,
    },
    reaper::Pass,
    worker,
};
use futures::future::join_all;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::harness::{Answer, DECISION_COST, Tenant, TestApp, script::scripted, until};

async fn cancel(app: &TestApp, tenant: &Tenant, run_id: RunId) -> Answer {
    let request = app.request(reqwest::Method::POST, &format!("/v1/runs/{run_id}/cancel"));
    app.send(request.bearer_auth(&tenant.key)).await
}

/// A worker of its own, which beats, until the token is cancelled.
fn start_worker(app: &TestApp) -> (CancellationToken, tokio::task::JoinHandle<()>) {
    let soft = CancellationToken::new();
    let work = worker::run(Arc::clone(&app.cx), 4, soft.clone(), CancellationToken::new());
    (soft, tokio::spawn(work))
}

async fn in_work(app: &TestApp, tenant: &Tenant, run_id: RunId) {
    until("the run is in work", async || app.run(tenant, run_id).await["status"] == "PROCESSING").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_waits_is_cancelled_at_once_for_free() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    let run_id = app.submit(&tenant, "one", "1").await;
    let cancelled = cancel(&app, &tenant, run_id).await;
    assert_eq!(cancelled.status, 200, "{cancelled:?}");
    let run = &cancelled.body;
    assert_eq!(
        (&run["status"], &run["money_state"], &run["actual_cost_usd"], &run["error"]),
        (&json!("CANCELLED"), &json!("REFUNDED"), &json!("0.0000"), &json!(null))
    );
    assert_eq!(cancelled.header("X-DPP-Cost-Actual"), Some("0.0000"));

    // All of the hold is back, the message wakes nobody, and a cancelled run is not cancelled again.
    app.submit(&tenant, "two", "1").await;
    assert_eq!(app.work().await, 1);
    let again = cancel(&app, &tenant, run_id).await;
    assert_eq!((again.status, again.slug()), (409, "run-not-cancellable"));
    // Its key still names it.
    assert_eq!(app.submit(&tenant, "one", "1").await, run_id);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_in_work_stops_within_seconds_and_pays_what_it_used() {
    // The default beat would come too late.
    let app = TestApp::with(&[("LEASE_SEC", "120"), ("HEARTBEAT_SEC", "30")]).await;
    let tenant = app.tenant("10").await;
    let (soft, worker) = start_worker(&app);
    for (key, used, paid) in [("little", "0.0001", "0.0200"), ("much", "0.7000", "0.7000")] {
        let body = scripted("1", &[&format!("charge {used}"), "wait"]);
        let run_id = app.post(&tenant, key, &body).await.run_id();
        in_work(&app, &tenant, run_id).await;
        for _ in 0..2 {
            let requested = cancel(&app, &tenant, run_id).await;
            assert!(requested.status == 202 || requested.status == 409, "{requested:?}");
            assert!(requested.status == 409 || requested.header("Retry-After").is_some());
        }
        until("it stops", async || app.run(&tenant, run_id).await["status"] == "CANCELLED").await;
        let run = app.run(&tenant, run_id).await;
        assert_eq!(
            (&run["money_state"], &run["actual_cost_usd"]),
            (&json!("SETTLED"), &json!(paid)),
            "{run}"
        );
    }
    soft.cancel();
    worker.await.unwrap();
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_ended_is_not_cancelled_and_nobody_elses_run_is_there() {
    let app = TestApp::start().await;
    let tenant = app.tenant("10").await;
    let stranger = app.tenant("10").await;
    let run_id = app.submit(&tenant, "one", "1").await;
    assert_eq!(cancel(&app, &stranger, run_id).await.status, 404);
    assert_eq!(cancel(&app, &tenant, RunId::new()).await.status, 404);
    app.work().await;
    let ended = cancel(&app, &tenant, run_id).await;
    assert_eq!((ended.status, ended.slug()), (409, "run-not-cancellable"));
    assert_eq!(app.run(&tenant, run_id).await["actual_cost_usd"], DECISION_COST);
    app.move_clock(TimeDelta::days(91));
    let gone = cancel(&app, &tenant, run_id).await;
    assert_eq!((gone.status, gone.slug()), (410, "run-expired"));
    app.finish().await;
}

/// The worker died with what its meter had counted; the platform's fault is free (P9).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_run_whose_worker_died_is_free_and_not_done_again() {
    let app = TestApp::start().await;
    let tenant = app.tenant("10").await;
    let leased = app.submit(&tenant, "leased", "1").await;
    let messages = app.cx.queue.receive(10, Duration::from_secs(3), Duration::ZERO).await.unwrap();
    drop(take::take(&app.cx, messages).await.unwrap());
    let claimed = app.submit(&tenant, "claimed", "1").await;
    app.cx.crash.arm(CrashPoint::FinishPut, Fault::DiesBefore);
    app.work().await;
    let delivered = app.submit(&tenant, "delivered", "1").await;
    app.cx.crash.arm(CrashPoint::FinishEnd, Fault::DiesBefore);
    app.work().await;
    for run_id in [leased, claimed, delivered] {
        assert_eq!(cancel(&app, &tenant, run_id).await.status, 202);
    }

    app.move_clock(TimeDelta::seconds(4));
    app.pass(Pass::Leases).await;
    app.pass(Pass::Claims).await;

    for (run_id, status, cost) in [
        (leased, "CANCELLED", "0.0000"),
        (claimed, "CANCELLED", "0.0000"),
        // Its result was there.
        (delivered, "COMPLETED", DECISION_COST),
    ] {
        let run = app.run(&tenant, run_id).await;
        assert_eq!((&run["status"], &run["actual_cost_usd"]), (&json!(status), &json!(cost)), "{run}");
    }
    app.finish().await;
}

/// Found in review: a run that was cancelled in work and then handed back waited for another worker, which
/// charged the minimum fee for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wish_survives_a_worker_that_hands_the_run_back() {
    let app = TestApp::start().await;
    let tenant = app.tenant("10").await;
    let body = scripted("1", &["charge 0.5", "panic"]);
    let run_id = app.post(&tenant, "one", &body).await.run_id();
    let messages = app.cx.queue.receive(10, Duration::from_secs(3), Duration::ZERO).await.unwrap();
    let mut taken = take::take(&app.cx, messages).await.unwrap();
    assert_eq!(cancel(&app, &tenant, run_id).await.status, 202);
    let (run, _) = taken.leased.remove(0);
    let _ = dpp::flow::finish::hand_back(&app.cx, &run).await.unwrap();

    assert_eq!(app.run(&tenant, run_id).await["status"], "PROCESSING");
    app.move_clock(TimeDelta::seconds(4));
    app.reap().await;
    let run = app.run(&tenant, run_id).await;
    assert_eq!((&run["status"], &run["actual_cost_usd"]), (&json!("CANCELLED"), &json!("0.0000")), "{run}");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancels_that_race_a_worker_end_each_run_once() {
    let app = TestApp::start().await;
    let tenant = app.tenant("100").await;
    for round in 0..5 {
        let mut runs = Vec::new();
        for number in 0..8 {
            runs.push(app.submit(&tenant, &format!("{round}-{number}"), "1").await);
        }
        let cancels = join_all(runs.iter().chain(&runs).map(|run_id| cancel(&app, &tenant, *run_id)));
        let (answers, _) = tokio::join!(cancels, app.work());
        for answer in &answers {
            assert!(matches!(answer.status, 200 | 202 | 409), "{answer:?}");
        }
        // One that was told "done" stays so.
        for answer in answers.iter().filter(|answer| answer.status == 200) {
            assert_eq!(app.run(&tenant, answer.run_id()).await["status"], "CANCELLED");
        }
    }
    app.finish().await;
}
