//! One reaper, and 10,000 runs that all died at once.

use std::time::{Duration, Instant};

use dpp::{domain::id::TenantId, flow::rebuild};
use futures::{StreamExt as _, stream};
use serde_json::Value;

use super::print;
use crate::harness::{TestApp, process::Process, s3::S3, until};

const RUNS: usize = 10_000;
const TENANTS: usize = 20;
/// Far above what it takes; it ends a test that hangs.
const PATIENCE: Duration = Duration::from_secs(900);

/// 10,000 runs of 20 tenants with their holds, in the ledger and at the gate, in the state that `set` gives
/// them. `row.number` counts them.
async fn stuck(app: &TestApp, set: &str) -> Vec<TenantId> {
    let mut tenants = Vec::new();
    for _ in 0..TENANTS {
        tenants.push(app.tenant("1000").await.id);
    }
    let list = tenants.iter().map(|tenant| format!("'{tenant}'::uuid")).collect::<Vec<_>>().join(",");
    let inputs = crate::harness::decision("1")["inputs"].to_string();
    app.place
        .sql(&format!(
            "INSERT INTO runs (run_id, tenant_id, key_id, pack_type, idempotency_key, payload_sha256, inputs, metadata,
                trace_id, reserved_usd_micros, minimum_fee_usd_micros, timebox_secs, version, created_at, next_send_at,
                started_at, status)
             SELECT gen_random_uuid(), tenant.id, (SELECT key_id FROM api_keys WHERE tenant_id = tenant.id), 'decision',
                'key-' || number, sha256(number::text::bytea), '{inputs}', '{{}}', md5(number::text), 1000000, 20000, 60, 1,
                now() - interval '1 hour', now(), now() - interval '1 hour', 'QUEUED'
             FROM generate_series(1, {RUNS}) AS number,
                LATERAL (SELECT (ARRAY[{list}])[1 + number % {TENANTS}] AS id) AS tenant;
             INSERT INTO ledger_transfers (tenant_id, kind, debit_account, credit_account, amount_usd_micros, run_id, created_at)
             SELECT tenant_id, 'hold', 'available', 'held', reserved_usd_micros, run_id, created_at FROM runs;
             UPDATE runs SET {set}
             FROM (SELECT run_id, row_number() OVER (ORDER BY run_id) AS number FROM runs) AS row WHERE row.run_id = runs.run_id"
        ))
        .await;
    for tenant in &tenants {
        rebuild::rebuild(&app.cx, *tenant).await.unwrap();
    }
    tenants
}

async fn count(app: &TestApp, of: &str) -> usize {
    let rows = app.place.sql(&format!("SELECT count(*) FROM runs WHERE {of}")).await;
    rows[0][0].as_deref().unwrap().parse().unwrap()
}

/// Starts one reaper and waits until nothing is in PROCESSING, and the gate holds what is open.
async fn one_reaper_clears(app: &TestApp, tenants: &[TenantId], what: &str) {
    assert_eq!(count(app, "status = 'PROCESSING'").await, RUNS);
    // Passes that follow one another at once, as a test's do, would fight over each tenant's lock.
    let paced = [
        ("REAPER_LEASE_POLICY", "minimum_fee"),
        ("REAPER_INTERVAL_SEC", "10"),
        ("RECONCILE_INTERVAL_SEC", "10"),
    ];
    let reaper = Process::start(&app.place, &["reap"], &paced);
    until("the pass has begun", async || count(app, "status = 'PROCESSING'").await < RUNS).await;
    let started = Instant::now();
    let mut in_database = None;
    loop {
        assert!(started.elapsed() < PATIENCE, "the reaper does not come to an end");
        if count(app, "status = 'PROCESSING'").await == 0 {
            in_database.get_or_insert_with(|| started.elapsed());
            let mut held = 0;
            for tenant in tenants {
                held += app.place.redis::<usize>(&["HLEN", &format!("dpp:{{{tenant}}}:holds")]).await;
            }
            if held == count(app, "completed_at IS NULL").await {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (database, all) = (in_database.unwrap_or_default().as_secs_f32(), started.elapsed().as_secs_f32());
    print(&format!("{RUNS} {what}: {database:.1} s in the database, {all:.1} s at the gate too"));
    reaper.signal("TERM");
    assert_eq!(reaper.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "makes 10,000 stuck runs, which takes minutes: make scale"]
async fn ten_thousand_dead_leases_are_cleared_by_one_reaper() {
    let app = TestApp::start().await;
    // Half of them have attempts left and are queued again, half end by the policy.
    let tenants = stuck(
        &app,
        "status = 'PROCESSING', lease_token = gen_random_uuid(), lease_expires_at = now() - interval '1 minute',
         attempts = CASE WHEN row.number % 2 = 0 THEN 1 ELSE 3 END",
    )
    .await;
    one_reaper_clears(&app, &tenants, "dead leases").await;
    assert_eq!(count(&app, "status = 'QUEUED' AND attempts = 1").await, RUNS / 2);
    assert_eq!(count(&app, "status = 'FAILED' AND actual_cost_usd_micros = 20000").await, RUNS / 2);
    // What is queued again is worked on, and every promise holds.
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "makes 10,000 stuck runs and their results, which takes minutes: make scale"]
async fn ten_thousand_stale_claims_are_cleared_by_one_reaper() {
    let app = TestApp::start().await;
    let bytes = Value::Object(serde_json::Map::new()).to_string();
    let tenants = stuck(
        &app,
        "status = 'PROCESSING', attempts = 1, finalize_stage = 'CLAIMED', finalize_token = gen_random_uuid(),
         claimed_at = now() - interval '10 minutes', claim_cost_usd_micros = 12000,
         result_key = tenant_id || '/' || runs.run_id || '/1-' || gen_random_uuid() || '/pack_envelope.json',
         result_sha256 = encode(sha256('{}'), 'hex')",
    )
    .await;
    let s3 = S3::of(&app.place);
    let rows = app.place.sql("SELECT result_key, run_id, tenant_id, result_sha256 FROM runs").await;
    stream::iter(rows)
        .for_each_concurrent(8, async |row| {
            let text = |column: usize| row[column].clone().unwrap();
            let metadata = [
                ("actual-cost-usd-micros".to_owned(), "12000".to_owned()),
                ("run-id".to_owned(), text(1)),
                ("tenant-id".to_owned(), text(2)),
                ("sha256".to_owned(), text(3)),
            ];
            s3.put(&text(0), &metadata, bytes.clone().into_bytes()).await;
        })
        .await;
    one_reaper_clears(&app, &tenants, "stale claims").await;
    assert_eq!(count(&app, "status = 'COMPLETED' AND actual_cost_usd_micros = 12000").await, RUNS);
    app.finish().await;
}
