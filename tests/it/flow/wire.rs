//! S3 and SQS that lose, refuse, delay and cut what is sent to them and what they answer.

use chrono::TimeDelta;
use dpp::{domain::reconcile::Sight, reaper::Pass};
use serde_json::json;

use crate::harness::{
    DECISION_COST, Tenant, TestApp, until,
    wire::{Fault, Seen, Which, Wire},
};

/// As often as the SDK tries a put.
const PUTS: usize = 3;

async fn one_run() -> (TestApp, Wire, Tenant, dpp::domain::id::RunId) {
    let (app, wire) = TestApp::wired(&[]).await;
    let tenant = app.tenant("10").await;
    let run_id = app.submit(&tenant, "one", "1").await;
    (app, wire, tenant, run_id)
}

/// Works with this fault on every put, and lets the claim grow stale.
async fn work_with(app: &TestApp, wire: &Wire, fault: Fault) {
    wire.s3.set(fault, Which::operation("PutObject"), PUTS);
    assert_eq!(app.work().await, 1);
    assert_eq!(wire.s3.met(), PUTS, "{:?}", wire.s3.seen());
    app.move_clock(TimeDelta::seconds(4));
}

async fn completed(app: &TestApp, tenant: &Tenant, run_id: dpp::domain::id::RunId, attempts: i64) {
    let run = app.run(tenant, run_id).await;
    assert_eq!((&run["status"], &run["attempts"]), (&json!("COMPLETED"), &json!(attempts)), "{run}");
    assert_eq!(run["actual_cost_usd"], DECISION_COST);
}

/// Where the claim's object is to lie.
async fn result_key(app: &TestApp) -> String {
    app.place.sql("SELECT result_key FROM runs").await[0][0].clone().expect("there is a claim")
}

fn of<'a>(seen: &'a [Seen], operation: &str) -> Vec<&'a Seen> {
    seen.iter().filter(|seen| seen.operation == operation).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_passes_a_wire_without_faults() {
    let (app, wire, tenant, run_id) = one_run().await;
    app.work().await;
    completed(&app, &tenant, run_id, 1).await;
    assert!(of(&wire.sqs.seen(), "SendMessageBatch").iter().all(|seen| seen.status == Some(200)));
    assert_eq!(of(&wire.s3.seen(), "PutObject").len(), 1);
    // A presigned URL leads through the wire as well.
    let url = app.run(&tenant, run_id).await["result_url"].as_str().unwrap().to_owned();
    assert!(url.starts_with(wire.s3.url()), "{url}");
    assert_eq!(reqwest::get(&url).await.unwrap().status(), 200);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_send_whose_answer_is_lost_is_accepted_and_its_copies_are_harmless() {
    let (app, wire) = TestApp::wired(&[]).await;
    let tenant = app.tenant("10").await;
    wire.sqs.set(Fault::LoseAnswer, Which::operation("SendMessageBatch"), None);
    let run_id = app.submit(&tenant, "one", "1").await;
    wire.sqs.clear();
    let sent = wire.sqs.seen();
    assert!(of(&sent, "SendMessageBatch").iter().all(|send| send.status == Some(200)), "{sent:?}");
    app.move_clock(TimeDelta::seconds(4));
    assert_eq!(app.pass(Pass::Unsent).await.changed, 1, "nobody knows that it was sent");
    app.work().await;
    completed(&app, &tenant, run_id, 1).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_cannot_be_reached_costs_a_submit_nothing_and_its_run_time() {
    for fault in [Fault::Refuse, Fault::Status(503, "ServiceUnavailable"), Fault::Hang] {
        let (app, wire) = TestApp::wired(&[]).await;
        let tenant = app.tenant("10").await;
        wire.sqs.set(fault, Which::any(), None);
        let run_id = app.submit(&tenant, "one", "1").await;
        app.move_clock(TimeDelta::seconds(4));
        assert_eq!(app.pass(Pass::Unsent).await.failed, 1);
        assert!(wire.sqs.seen().iter().all(|seen| seen.status.is_none()));
        wire.sqs.clear();
        assert_eq!(app.work().await, 0, "no message was sent");
        app.move_clock(TimeDelta::seconds(4));
        assert_eq!(app.pass(Pass::Unsent).await.changed, 1);
        app.work().await;
        completed(&app, &tenant, run_id, 1).await;
        app.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receive_whose_answer_is_lost_comes_again() {
    let (app, wire, tenant, run_id) = one_run().await;
    wire.sqs.set(Fault::LoseAnswer, Which::operation("ReceiveMessage"), None);
    assert!(dpp::worker::once(std::sync::Arc::clone(&app.cx), std::time::Duration::ZERO).await.is_err());
    wire.sqs.clear();
    assert_eq!(app.run(&tenant, run_id).await["status"], "QUEUED");
    app.move_clock(TimeDelta::seconds(4));
    app.quiet().await;
    completed(&app, &tenant, run_id, 1).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_that_is_lost_leaves_a_message_that_wakes_nobody() {
    for fault in [Fault::Refuse, Fault::LoseAnswer] {
        let (app, wire, tenant, run_id) = one_run().await;
        wire.sqs.set(fault, Which::operation("DeleteMessageBatch"), 2);
        app.work().await;
        assert_eq!(wire.sqs.met(), 2);
        completed(&app, &tenant, run_id, 1).await;
        app.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_whose_answer_was_lost_once_is_recognised_by_its_receipt() {
    let (app, wire, tenant, run_id) = one_run().await;
    wire.s3.set(Fault::LoseAnswer, Which::operation("PutObject"), 1);
    app.work().await;
    completed(&app, &tenant, run_id, 1).await;
    let statuses: Vec<_> = of(&wire.s3.seen(), "PutObject").iter().map(|put| put.status).collect();
    assert_eq!(statuses, [Some(200), Some(412)], "the second found the first");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_whose_answers_are_all_lost_is_rolled_forward() {
    let (app, wire, tenant, run_id) = one_run().await;
    work_with(&app, &wire, Fault::LoseAnswer).await;
    assert_eq!(app.run(&tenant, run_id).await["status"], "PROCESSING");
    assert_eq!(app.pass(Pass::Claims).await.changed, 1);
    completed(&app, &tenant, run_id, 1).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_that_is_refused_or_lost_is_a_lost_attempt_that_the_platform_pays_for() {
    for fault in [Fault::Refuse, Fault::Status(503, "SlowDown")] {
        let (app, wire, tenant, run_id) = one_run().await;
        work_with(&app, &wire, fault).await;
        assert_eq!(app.pass(Pass::Claims).await.changed, 1);
        assert_eq!(app.run(&tenant, run_id).await["status"], "QUEUED");
        app.quiet().await;
        completed(&app, &tenant, run_id, 2).await;
        app.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_that_arrives_after_the_verdict_replaces_nothing() {
    let (app, wire, tenant, run_id) = one_run().await;
    work_with(&app, &wire, Fault::Late).await;
    let late = result_key(&app).await;
    assert_eq!(app.pass(Pass::Claims).await.changed, 1, "absent: rolled back");

    // Before the second attempt or after it: it lies under its own attempt's key.
    assert_eq!(wire.s3.release().await, [200, 412, 412]);
    app.quiet().await;

    completed(&app, &tenant, run_id, 2).await;
    assert_ne!(result_key(&app).await, late);
    assert!(matches!(app.cx.results.look(&late).await, Sight::Present { .. }));
    // It goes with the run's retention.
    app.move_clock(TimeDelta::days(91));
    assert_eq!(app.pass(Pass::Retention).await.changed, 1);
    assert_eq!(app.cx.results.look(&late).await, Sight::Absent);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_that_is_cut_off_leaves_no_object() {
    let (app, wire, tenant, run_id) = one_run().await;
    work_with(&app, &wire, Fault::Truncate).await;
    let puts = wire.s3.seen();
    assert!(
        of(&puts, "PutObject").iter().all(|put| put.status.is_none_or(|status| status >= 400)),
        "{puts:?}"
    );
    assert_eq!(app.cx.results.look(&result_key(&app).await).await, Sight::Absent);
    app.quiet().await;
    completed(&app, &tenant, run_id, 2).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_that_fails_proves_nothing() {
    let (app, wire, tenant, run_id) = one_run().await;
    work_with(&app, &wire, Fault::LoseAnswer).await;
    let nothing_yet = async |why: &str| {
        let tally = app.pass(Pass::Claims).await;
        assert_eq!((tally.found, tally.changed, tally.failed), (1, 0, 1), "{why}");
        wire.s3.clear();
    };
    for fault in [
        Fault::Refuse,
        Fault::LoseAnswer,
        Fault::Status(403, "AccessDenied"),
        Fault::Status(500, "InternalError"),
        Fault::Status(503, "SlowDown"),
        // The object is there and the listing shows it.
        Fault::Stale,
    ] {
        wire.s3.set(fault, Which::operation("HeadObject"), None);
        nothing_yet(&format!("{fault:?}")).await;
    }
    // Not even a 404, while the listing says nothing.
    wire.s3.set(Fault::Stale, Which::operation("HeadObject"), None);
    wire.s3.set(Fault::Status(403, "AccessDenied"), Which::operation("ListObjectsV2"), None);
    nothing_yet("no listing").await;

    assert_eq!(app.pass(Pass::Claims).await.changed, 1);
    completed(&app, &tenant, run_id, 1).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_that_hangs_proves_nothing_and_ends_with_its_connection() {
    let (app, wire, tenant, run_id) = one_run().await;
    work_with(&app, &wire, Fault::Refuse).await;
    wire.s3.set(Fault::Hang, Which::operation("HeadObject"), None);
    let cx = std::sync::Arc::clone(&app.cx);
    let pass = tokio::spawn(async move { Pass::Claims.once(&cx).await.unwrap() });
    until("the look hangs", async || wire.s3.met() > PUTS).await;
    wire.s3.cut();
    assert_eq!(pass.await.unwrap().failed, 1);
    wire.s3.clear();
    app.quiet().await;
    completed(&app, &tenant, run_id, 2).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_that_cannot_delete_keeps_the_run_until_it_can() {
    let (app, wire, tenant, run_id) = one_run().await;
    app.work().await;
    let key = result_key(&app).await;
    app.move_clock(TimeDelta::days(91));
    for operation in ["ListObjectsV2", "DeleteObjects"] {
        wire.s3.set(
            Fault::Status(503, "SlowDown"),
            Which::operation(operation).at(&app.place.environment["S3_RESULT_BUCKET"]),
            None,
        );
        assert_eq!(app.pass(Pass::Retention).await.failed, 1, "{operation}");
        wire.s3.clear();
        assert!(matches!(app.cx.results.look(&key).await, Sight::Present { .. }));
    }
    // Deleted, though nobody heard of it: the next pass finds nothing to delete.
    wire.s3.set(Fault::LoseAnswer, Which::operation("DeleteObjects"), None);
    assert_eq!(app.pass(Pass::Retention).await.failed, 1);
    wire.s3.clear();
    assert_eq!(app.cx.results.look(&key).await, Sight::Absent);
    assert_eq!(app.pass(Pass::Retention).await.changed, 1);
    assert_eq!(app.get(&format!("/v1/runs/{run_id}"), &tenant.key).await.status, 410);
    app.finish().await;
}
