//! AUDIT_REQUIRED as an operator meets it: `docs/runbook/audit-required.md`, walked with real processes.

use dpp::{
    domain::id::RunId,
    flow::crash::{CrashPoint, Fault},
};
use futures::future::join;
use serde_json::{Value, json};

use crate::harness::{
    DECISION_COST, TestApp,
    process::{Process, dpp},
    s3::S3,
    until,
};

/// A worker that dies with its claim made.
async fn claim_and_die(app: &TestApp, run: RunId, at: CrashPoint) -> String {
    app.cx.crash.arm(at, Fault::DiesBefore);
    app.work().await;
    result_key(app, run).await
}

/// What the runbook says to type so that the reaper judges again.
fn judge_again(run: RunId) -> String {
    let page = include_str!("../../../docs/runbook/audit-required.md");
    let statement =
        page.split("```").find(|block| block.contains("UPDATE runs")).expect("the runbook has it");
    statement.trim_start_matches("sql").replace("RUN_ID", &run.to_string())
}

async fn result_key(app: &TestApp, run: RunId) -> String {
    let rows = app.place.sql(&format!("SELECT result_key FROM runs WHERE run_id = '{run}'")).await;
    rows[0][0].clone().expect("it is claimed")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contradiction_is_shouted_counted_shown_and_resolved_once_by_an_operator() {
    let app = TestApp::start().await;
    let tenant = app.tenant("10").await;
    let s3 = S3::of(&app.place);
    // The first worker is a process that dies for real.
    let first = app.submit(&tenant, "run-0", "1").await;
    let worker = Process::start(&app.place, &["work"], &[("DPP_CRASH_AT", "before FinishPut")]);
    assert_eq!(worker.ended().await, None, "it died");
    let mut runs = vec![(first, result_key(&app, first).await)];
    for number in 1..5 {
        let run = app.submit(&tenant, &format!("run-{number}"), "1").await;
        let at = if number == 4 { CrashPoint::FinishEnd } else { CrashPoint::FinishPut };
        runs.push((run, claim_and_die(&app, run, at).await));
    }
    let (bytes, receipt) = s3.get(&runs[4].1).await;
    // Every contradiction that there is: what the receipt says of cost, run and bytes, and what the alarm says.
    let good = "12000".to_owned();
    let stranger = RunId::new();
    let forged = [
        ("999900".to_owned(), runs[0].0, "0", "cost 0.9999 is not the claim's 0.0120"),
        ("1000100".to_owned(), runs[1].0, "0", "cost 1.0001 is above the hold 1.0000"),
        ("free".to_owned(), runs[2].0, "0", "no sound `actual-cost-usd-micros`"),
        (good.clone(), stranger, "0", "names run"),
        (good, runs[4].0, "0", "sha256 is not the claim's"),
    ];
    for ((_, key), (cost, run, digit, _)) in runs.iter().zip(&forged) {
        let metadata = [
            ("actual-cost-usd-micros", cost.clone()),
            ("run-id", run.to_string()),
            ("tenant-id", tenant.id.to_string()),
            ("sha256", digit.repeat(64)),
        ];
        s3.put(key, &metadata.map(|(name, value)| (name.to_owned(), value)), b"{}".to_vec()).await;
    }
    let history = app.place.sql("SELECT * FROM ledger_transfers ORDER BY transfer_id").await;

    // The alarm: one line a run, with everything that a person needs, and the metric from zero on.
    let mut reaper = Process::start(&app.place, &["reap"], &[("RECONCILE_THRESHOLD_MIN", "10")]);
    let ops: Value = serde_json::from_str(&reaper.line("metrics and health are shown").await).unwrap();
    let metrics = async || {
        let url = format!("http://{}/metrics", ops["address"].as_str().unwrap());
        reqwest::get(url).await.unwrap().text().await.unwrap()
    };
    assert!(metrics().await.contains("\ndpp_audit_required_total 0\n"), "a rise from nothing is no rise");
    app.place.sql("UPDATE runs SET claimed_at = claimed_at - interval '1 hour'").await;
    for _ in &runs {
        let line: Value = serde_json::from_str(&reaper.line("AUDIT_REQUIRED").await).unwrap();
        assert_eq!(
            (&line["level"], &line["severity"], &line["alert_channel"]),
            (&json!("ERROR"), &json!("CRITICAL"), &json!("money")),
            "{line}"
        );
        let at = runs.iter().position(|(run, _)| line["run_id"] == run.to_string()).expect("it names a run");
        let reason = line["reason"].as_str().unwrap();
        assert!(reason.contains(forged[at].3), "{reason}");
        assert_eq!(
            (&line["tenant_id"], &line["result_key"], &line["held_usd_micros"], &line["claimed_usd_micros"]),
            (&json!(tenant.id), &json!(runs[at].1), &json!(1_000_000), &json!(12_000)),
            "{line}"
        );
        assert_eq!(line["trace_id"], app.run(&tenant, runs[at].0).await["trace_id"]);
    }
    assert!(metrics().await.contains("\ndpp_audit_required_total 5\n"));

    // The audit shows them, and nothing has moved.
    let (code, out, _) = dpp(&app.place, &["audit", "--json"]).await;
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, document["differences"].as_array().unwrap().len()), (1, 5), "{document:#}");
    for line in document["differences"].as_array().unwrap() {
        assert_eq!(
            (&line["kind"], &line["expected_usd_micros"]),
            (&json!("audit_required"), &json!(1_000_000))
        );
        let at = runs.iter().position(|(run, _)| line["run_id"] == run.to_string()).unwrap();
        assert!(line["detail"].as_str().unwrap().contains(forged[at].3));
    }
    let (code, out, _) = dpp(&app.place, &["audit"]).await;
    assert!(code == 1 && out.contains(&format!("audit_required tenant {} run {first}", tenant.id)), "{out}");
    let seen = app.run(&tenant, first).await;
    assert_eq!((&seen["status"], &seen["money_state"]), (&json!("PROCESSING"), &json!("AUDIT_REQUIRED")));
    assert_eq!(app.get("/v1/budget", &tenant.key).await.body["held_usd"], "5.0000");
    assert_eq!(app.place.sql("SELECT * FROM ledger_transfers ORDER BY transfer_id").await, history);

    // Two operators at once: one decides.
    let resolve = async |run: RunId, words: &[&str]| {
        dpp(&app.place, &[&["run", "resolve", &run.to_string()], words].concat()).await
    };
    let (one, two) = join(
        resolve(first, &["--charge", "0.25", "--reason", "Settled by hand."]),
        resolve(first, &["--release", "--reason", "Released by hand."]),
    )
    .await;
    let (won, lost) = if one.0 == 0 { (&one, &two) } else { (&two, &one) };
    assert_eq!((won.0, lost.0), (0, 1), "{one:?} {two:?}");
    assert!(won.1.contains(&format!("run {first} is FAILED")), "{won:?}");
    assert!(lost.2.contains("does not wait for a person"), "{lost:?}");
    let charged = if one.0 == 0 { "0.2500" } else { "0.0000" };
    assert_eq!(app.run(&tenant, first).await["actual_cost_usd"], charged);
    for (run, _) in &runs[1..3] {
        let (code, _, err) = resolve(*run, &["--release", "--reason", "The result was lost."]).await;
        assert_eq!(code, 0, "{err}");
        let seen = app.run(&tenant, *run).await;
        assert_eq!(
            (&seen["status"], &seen["money_state"], &seen["actual_cost_usd"], &seen["error"]["detail"]),
            (&json!("FAILED"), &json!("REFUNDED"), &json!("0.0000"), &json!("The result was lost."))
        );
        let (code, _, err) = resolve(*run, &["--charge", "1", "--reason", "Again."]).await;
        assert!(code == 1 && err.contains("REFUNDED") && err.contains("nothing changed"), "{code} {err}");
    }

    // Made right, the reaper judges again: without an object the attempt was lost, with the right one the run is done.
    s3.delete(&runs[3].1).await;
    s3.put(&runs[4].1, &receipt, bytes).await;
    for (run, _) in &runs[3..] {
        app.place.sql(&judge_again(*run)).await;
    }
    for (at, status) in [(3, "QUEUED"), (4, "COMPLETED")] {
        until(status, async || app.run(&tenant, runs[at].0).await["status"] == status).await;
    }
    for (run, _) in &runs[3..] {
        until("the run is done", async || {
            app.work().await;
            app.run(&tenant, *run).await["actual_cost_usd"] == DECISION_COST
        })
        .await;
    }

    // What was booked is as it was; each hold has ended in new rows; the books balance.
    let now = app.place.sql("SELECT * FROM ledger_transfers ORDER BY transfer_id").await;
    assert_eq!(now[..history.len()], history[..]);
    assert_eq!(app.get("/v1/budget", &tenant.key).await.body["held_usd"], "0.0000");
    let (code, out, _) = dpp(&app.place, &["audit", "--receipts"]).await;
    assert!(code == 0 && out.starts_with("balanced"), "{out}");
    reaper.signal("TERM");
    assert_eq!(reaper.ended().await, Some(0));
    app.finish().await;
}
