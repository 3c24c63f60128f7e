//! An audit of 1,000,000 runs, alone and beside traffic.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use dpp::{domain::id::TenantId, flow::rebuild};
use futures::{StreamExt as _, stream};
use serde_json::Value;

use super::print;
use crate::harness::{Tenant, TestApp, process::measured};

const TENANTS: u64 = 1_000;
const RUNS: u64 = 1_002_000;

async fn audit(app: &TestApp, what: &str) -> (i32, Value) {
    let ((code, out, err), took, peak_kib) = measured(&app.place, &["audit", "--json"]).await;
    print(&format!("{what}: {:.1} s, {} MiB at most", took.as_secs_f32(), peak_kib / 1024));
    (code, serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out} {err}")))
}

/// Submits and works, one run after the other, until told to stop; how long each submit took.
async fn traffic(
    app: Arc<TestApp>,
    tenant: Tenant,
    name: &'static str,
    stop: Arc<AtomicBool>,
) -> Vec<Duration> {
    let mut latencies = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        app.submit(&tenant, &format!("{name}-{}", latencies.len()), "1").await;
        latencies.push(started.elapsed());
        app.work().await;
    }
    latencies.sort();
    latencies
}

fn print_latencies(what: &str, sorted: &[Duration]) {
    let at = |percent: usize| sorted[(sorted.len() - 1) * percent / 100].as_millis();
    let (half, most, max) = (at(50), at(99), at(100));
    print(&format!("{} submits {what}: p50 {half} ms, p99 {most} ms, max {max} ms", sorted.len()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "makes 1,000,000 runs, which takes minutes: make scale"]
async fn a_million_runs_are_audited_alone_beside_traffic_and_with_a_needle_in_them() {
    let app = TestApp::start().await;
    let started = Instant::now();
    app.place.sql(include_str!("books.sql")).await;
    print(&format!("made {RUNS} runs in {:.0} s", started.elapsed().as_secs_f32()));
    let (code, document) = audit(&app, "audit, the planner without statistics, no budget at the gate").await;
    assert_eq!((code, &document["differences"]), (0, &Value::Array(Vec::new())));
    assert_eq!((&document["tenants"], &document["runs"]), (&TENANTS.into(), &RUNS.into()));

    app.place.sql("ANALYZE").await;
    let tenants = app.place.sql("SELECT tenant_id FROM tenants").await;
    stream::iter(tenants)
        .for_each_concurrent(8, async |row| {
            let tenant: TenantId = row[0].as_deref().unwrap().parse().unwrap();
            rebuild::rebuild(&app.cx, tenant).await.unwrap();
        })
        .await;
    let (code, document) = audit(&app, "audit, all budgets at the gate").await;
    assert_eq!((code, &document["differences"]), (0, &Value::Array(Vec::new())));

    let tenant = app.tenant("100000").await;
    let app = Arc::new(app);
    let stop = Arc::new(AtomicBool::new(false));
    let alone = tokio::spawn(traffic(Arc::clone(&app), tenant.clone(), "alone", Arc::clone(&stop)));
    tokio::time::sleep(Duration::from_secs(5)).await;
    stop.store(true, Ordering::Relaxed);
    print_latencies("alone", &alone.await.unwrap());
    stop.store(false, Ordering::Relaxed);
    let beside = tokio::spawn(traffic(Arc::clone(&app), tenant, "beside", Arc::clone(&stop)));
    let (code, document) = audit(&app, "audit beside traffic").await;
    stop.store(true, Ordering::Relaxed);
    print_latencies("beside an audit", &beside.await.unwrap());
    assert_eq!((code, &document["differences"]), (0, &Value::Array(Vec::new())));
    let app = Arc::into_inner(app).unwrap();

    // One micro in one row deep in history, one in one snapshot, one at the gate.
    let needle = |by: i64| {
        format!(
            "SET session_replication_role = replica;
             UPDATE ledger_transfers SET amount_usd_micros = amount_usd_micros + {by}
                WHERE kind = 'charge' AND run_id = (SELECT run_id FROM runs WHERE idempotency_key = 'key-500001'
                    AND tenant_id = '018f0000-0000-7000-8000-000000000001');
             UPDATE ledger_snapshots SET held_usd_micros = held_usd_micros + {by}, charged_usd_micros = charged_usd_micros - {by}
                WHERE (tenant_id, last_transfer_id) = (SELECT tenant_id, last_transfer_id FROM ledger_snapshots
                    ORDER BY tenant_id, last_transfer_id OFFSET 20 LIMIT 1)"
        )
    };
    let budget = "dpp:{018f0000-0000-7000-8000-0000000000ff}:budget";
    app.place.sql(&needle(1)).await;
    let _: i64 = app.place.redis(&["HINCRBY", budget, "available", "1"]).await;
    let (code, document) = audit(&app, "audit with three needles").await;
    assert_eq!(code, 1);
    let mut kinds: Vec<_> = document["differences"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| line["kind"].as_str().unwrap())
        .collect();
    kinds.sort_unstable();
    // The row under its snapshot, the snapshot, the one after it, and the gate.
    let snapshots = ["snapshot_charged", "snapshot_held"];
    let expected = [vec!["charge_amount", "gate_available"], snapshots.repeat(3)].concat();
    let mut expected: Vec<_> = expected.into_iter().collect();
    expected.sort_unstable();
    assert_eq!(kinds, expected, "{document:#}");
    app.place.sql(&needle(-1)).await;
    let _: i64 = app.place.redis(&["HINCRBY", budget, "available", "-1"]).await;
    app.finish().await;
}
