//! The promises P1–P7, checked from outside: plain SQL, plain Redis, plain S3, and none of the code
//! that made what they check.

use std::collections::HashMap;

use sha2::{Digest as _, Sha256};

use super::TestApp;

/// Checks all of them.
pub async fn promises(app: &TestApp) {
    ledger(app).await;
    each_run(app).await;
    keys(app).await;
    gate(app).await;
    receipts(app).await;
    let audit = dpp::flow::audit::audit(&app.cx, true).await.unwrap();
    let real: Vec<_> = audit.differences.iter().filter(|finding| finding.kind != "audit_required").collect();
    assert!(real.is_empty(), "the auditor disagrees: {real:?}");
}

/// P1, P2: deposits = available + held + charged, and none of them below zero.
async fn ledger(app: &TestApp) {
    let rows = app
        .place
        .sql(
            "SELECT tenant_id,
                sum(CASE WHEN kind = 'deposit' THEN amount_usd_micros ELSE 0 END) AS deposited,
                sum(CASE kind WHEN 'deposit' THEN amount_usd_micros WHEN 'hold' THEN -amount_usd_micros
                    WHEN 'release' THEN amount_usd_micros ELSE 0 END) AS available,
                sum(CASE kind WHEN 'hold' THEN amount_usd_micros WHEN 'release' THEN -amount_usd_micros
                    WHEN 'charge' THEN -amount_usd_micros ELSE 0 END) AS held,
                sum(CASE WHEN kind = 'charge' THEN amount_usd_micros ELSE 0 END) AS charged
             FROM ledger_transfers GROUP BY tenant_id",
        )
        .await;
    for row in rows {
        let number = |column: usize| row[column].as_deref().unwrap().parse::<i128>().unwrap();
        let (deposited, available, held, charged) = (number(1), number(2), number(3), number(4));
        assert_eq!(deposited, available + held + charged, "P1 for {row:?}");
        assert!(available >= 0 && held >= 0 && charged >= 0, "P2 for {row:?}");
    }
}

/// P1, P3, P7: each run has ended or waits for a person, and its ledger rows are what its state calls
/// for, once.
async fn each_run(app: &TestApp) {
    let rows = app
        .place
        .sql(
            "SELECT run.run_id, run.status, run.money_state, run.reserved_usd_micros, run.actual_cost_usd_micros, booked.rows
             FROM runs AS run LEFT JOIN (
                SELECT run_id, string_agg(kind || ' ' || amount_usd_micros, ',' ORDER BY kind) AS rows
                FROM ledger_transfers GROUP BY run_id) AS booked USING (run_id)",
        )
        .await;
    for row in rows {
        let text = |column: usize| row[column].clone().unwrap_or_default();
        let (status, money_state, reserved, booked) = (text(1), text(2), text(3), text(5));
        let open = status == "QUEUED" || status == "PROCESSING";
        if open {
            assert_eq!(money_state, "AUDIT_REQUIRED", "P7: still open: {row:?}");
            assert_eq!(booked, format!("hold {reserved}"), "P1 for {row:?}");
            continue;
        }
        let (reserved, cost): (i64, i64) = (reserved.parse().unwrap(), text(4).parse().unwrap());
        let mut expected = Vec::new();
        if cost > 0 {
            expected.push(format!("charge {cost}"));
        }
        expected.push(format!("hold {reserved}"));
        if reserved > cost {
            expected.push(format!("release {}", reserved - cost));
        }
        assert_eq!(booked, expected.join(","), "P3 for {row:?}");
    }
}

/// P10 for keys that may spend so much and no more: what they say is what their families' runs cost and hold.
async fn keys(app: &TestApp) {
    let rows = app
        .place
        .sql(
            "SELECT root.spent_usd_micros, root.spend_max_usd_micros, (
                SELECT coalesce(sum(coalesce(run.actual_cost_usd_micros, run.reserved_usd_micros)), 0)
                FROM api_keys AS key JOIN runs AS run USING (key_id) WHERE key.limits_key_id = root.key_id)
             FROM api_keys AS root WHERE root.spend_max_usd_micros IS NOT NULL AND root.key_id = root.limits_key_id",
        )
        .await;
    for row in rows {
        let number = |column: usize| row[column].as_deref().unwrap().parse::<i64>().unwrap();
        assert_eq!(number(0), number(2), "what a key has spent: {row:?}");
        assert!(number(0) <= number(1), "more than a key may spend: {row:?}");
    }
}

/// P1 at the gate: what Redis lets be spent, and its holds, are the ledger's, wherever Redis claims to
/// know: under the current epoch, and under its own name.
async fn gate(app: &TestApp) {
    let server = server(app).await;
    let tenants = app.place.sql("SELECT tenant_id, budget_epoch FROM tenants").await;
    for tenant in tenants {
        let (tenant_id, epoch) = (tenant[0].clone().unwrap(), tenant[1].clone().unwrap());
        let key = |name: &str| format!("dpp:{{{tenant_id}}}:{name}");
        let budget: HashMap<String, String> = app.place.redis(&["HGETALL", &key("budget")]).await;
        if budget.get("epoch") != Some(&epoch) || budget.get("server") != Some(&server) {
            continue;
        }
        let books = app.place.sql(&format!("SELECT available FROM tenant_books('{tenant_id}')")).await;
        assert_eq!(budget.get("available"), books[0][0].as_ref(), "P1 at the gate for {tenant_id}");
        let holds: HashMap<String, String> = app.place.redis(&["HGETALL", &key("holds")]).await;
        let open: HashMap<String, String> = app
            .place
            .sql(&format!(
                "SELECT run_id, reserved_usd_micros FROM runs WHERE tenant_id = '{tenant_id}' AND completed_at IS NULL"
            ))
            .await
            .into_iter()
            .map(|row| (row[0].clone().unwrap(), row[1].clone().unwrap()))
            .collect();
        assert_eq!(holds, open, "the gate's holds for {tenant_id}");
        let admits: HashMap<String, String> = app.place.redis(&["HGETALL", &key("admits")]).await;
        let keys: HashMap<String, String> = app.place.redis(&["HGETALL", &key("keys")]).await;
        assert_eq!(
            (admits.len(), keys.len()),
            (open.len(), open.len()),
            "traces of ended holds for {tenant_id}"
        );
        for name in ["budget", "holds", "admits", "keys"] {
            let ttl: i64 = app.place.redis(&["TTL", &key(name)]).await;
            assert!(ttl < 0, "no money ever has a TTL");
        }
    }
}

/// What a budget calls the Redis server that it was set on.
pub async fn server(app: &TestApp) -> String {
    let mut name = Vec::new();
    for (section, key) in [("server", "run_id:"), ("replication", "master_replid:")] {
        let info: String = app.place.redis(&["INFO", section]).await;
        name.push(info.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned());
    }
    name.join(" ")
}

/// P5: a completed run's object is there, is what the run says, and says what the run cost.
async fn receipts(app: &TestApp) {
    let rows = app
        .place
        .sql(
            "SELECT result_key, result_sha256, actual_cost_usd_micros, run_id, tenant_id FROM runs
             WHERE status = 'COMPLETED' AND purged_at IS NULL",
        )
        .await;
    let (s3, bucket) = app.place.s3();
    for row in rows {
        let text = |column: usize| row[column].clone().unwrap();
        let object = s3.get_object().bucket(bucket).key(text(0)).send().await;
        let object = object.unwrap_or_else(|error| panic!("P5: no object for {row:?}: {error:?}"));
        let metadata = object.metadata.clone().unwrap_or_default();
        let bytes = object.body.collect().await.unwrap().to_vec();
        assert_eq!(dpp::domain::api_key::hex(&Sha256::digest(&bytes)), text(1), "P5: the bytes of {row:?}");
        let said = |name: &str| metadata.get(name).cloned().unwrap_or_default();
        assert_eq!(said("actual-cost-usd-micros"), text(2), "P5: the receipt of {row:?}");
        assert_eq!((said("run-id"), said("tenant-id")), (text(3), text(4)), "P5: the receipt of {row:?}");
        assert!(
            text(0).starts_with(&text(4)) && text(0).ends_with("/pack_envelope.json"),
            "the key of {row:?}"
        );
    }
}
