//! The auditor audited: every way in which we know the books can be wrong is made with plain SQL, Redis and
//! S3, past every trigger and constraint, and `dpp audit` names it; put right again, it is content.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use dpp::domain::id::{RunId, TenantId};
use serde_json::Value;

use crate::harness::{Tenant, TestApp, process::dpp, s3::S3, services::Place};

/// A step into the corruption, or out of it.
#[derive(Clone, Debug)]
enum Do {
    /// With no trigger and no foreign key in the way.
    Sql(String),
    Redis(Vec<String>),
    /// Puts an object over the completed run's: metadata to change or drop, and a change of its bytes.
    Put(Vec<(&'static str, Option<String>)>, fn(&mut Vec<u8>)),
    DeleteObject,
    /// Puts the completed run's object back as it was.
    RestoreObject,
}

/// Kind, run, expected micros, found micros.
type Named = (&'static str, Option<RunId>, i64, i64);

struct Case {
    name: &'static str,
    wrong: Vec<Do>,
    right: Vec<Do>,
    /// What the audit must name, of the first tenant.
    named: Vec<Named>,
    /// The kinds of all other lines that follow from it.
    and: &'static [&'static str],
}

/// A tenant with $10 and $1 more after its newest snapshot, two snapshots, a run of each sort.
struct Books {
    app: TestApp,
    tenant: Tenant,
    other: Tenant,
    /// Completed, before the first snapshot.
    done: RunId,
    /// Completed, after the newest snapshot.
    late: RunId,
    /// Waiting, before the newest snapshot.
    open: RunId,
    s3: S3,
    key: String,
    bytes: Vec<u8>,
    metadata: Vec<(String, String)>,
}

const HOLD: i64 = 1_000_000;
const COST: i64 = 12_000;

impl Books {
    async fn new() -> Self {
        let app = TestApp::start().await;
        let (tenant, other) = (app.tenant("10").await, app.tenant("1").await);
        let done = app.submit(&tenant, "done", "1").await;
        app.work().await;
        snapshot(&app, tenant.id).await;
        let open = app.submit(&tenant, "open", "1").await;
        // Its message is out of sight, so that it waits.
        let hidden = app.cx.queue.receive(1, Duration::from_secs(600), Duration::ZERO).await.unwrap();
        assert_eq!(hidden.len(), 1);
        snapshot(&app, tenant.id).await;
        dpp::flow::deposit::deposit(&app.cx, tenant.id, "1".parse().unwrap(), "second").await.unwrap();
        let late = app.submit(&tenant, "late", "1").await;
        app.work().await;
        let s3 = S3::of(&app.place);
        let key = app.place.sql(&format!("SELECT result_key FROM runs WHERE run_id = '{done}'")).await[0][0]
            .clone()
            .unwrap();
        let (bytes, metadata) = s3.get(&key).await;
        Self { app, tenant, other, done, late, open, s3, key, bytes, metadata }
    }

    fn place(&self) -> &Place {
        &self.app.place
    }

    fn gate(&self, name: &str) -> String {
        format!("dpp:{{{}}}:{name}", self.tenant.id)
    }

    async fn make(&self, step: &Do) {
        match step {
            Do::Sql(text) => {
                self.place().sql(&format!("SET session_replication_role = replica; {text}")).await;
            }
            Do::Redis(words) => {
                let words: Vec<_> = words.iter().map(String::as_str).collect();
                let _: deadpool_redis::redis::Value = self.place().redis(&words).await;
            }
            Do::Put(changes, alter) => {
                let mut metadata = self.metadata.clone();
                for (name, value) in changes {
                    metadata.retain(|(there, _)| there != name);
                    metadata.extend(value.clone().map(|value| ((*name).to_owned(), value)));
                }
                let mut bytes = self.bytes.clone();
                alter(&mut bytes);
                self.s3.put(&self.key, &metadata, bytes).await;
            }
            Do::DeleteObject => self.s3.delete(&self.key).await,
            Do::RestoreObject => self.s3.put(&self.key, &self.metadata, self.bytes.clone()).await,
        }
    }

    async fn audit(&self) -> (i32, Value) {
        let (code, out, err) = dpp(self.place(), &["audit", "--receipts", "--json"]).await;
        (code, serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out} {err}")))
    }

    async fn walk(self, cases: Vec<Case>) {
        let (code, document) = self.audit().await;
        assert_eq!((code, &document["balanced"]), (0, &Value::Bool(true)), "{document:#}");
        assert_eq!((&document["tenants"], &document["runs"]), (&2.into(), &3.into()), "{document:#}");
        for case in cases {
            for step in &case.wrong {
                self.make(step).await;
            }
            let (code, document) = self.audit().await;
            let name = case.name;
            assert_eq!((code, &document["balanced"]), (1, &Value::Bool(false)), "{name}: {document:#}");
            let differences = document["differences"].as_array().unwrap();
            let mut others: Vec<_> = differences.iter().collect();
            for (kind, run_id, expected, found) in &case.named {
                let before = others.len();
                others.retain(|line| {
                    !(line["kind"] == *kind
                        && line["tenant_id"] == self.tenant.id.to_string()
                        && line["run_id"] == run_id.map_or(Value::Null, |run| run.to_string().into())
                        && line["expected_usd_micros"] == *expected
                        && line["found_usd_micros"] == *found
                        && line["detail"].as_str().is_some_and(|detail| !detail.is_empty()))
                });
                assert_eq!(others.len(), before - 1, "{name}: {kind} {expected} {found} in {document:#}");
            }
            let others: BTreeSet<_> = others.iter().map(|line| line["kind"].as_str().unwrap()).collect();
            assert_eq!(others, case.and.iter().copied().collect(), "{name}: {document:#}");
            for step in &case.right {
                self.make(step).await;
            }
            let (code, document) = self.audit().await;
            assert_eq!(
                (code, &document["balanced"]),
                (0, &Value::Bool(true)),
                "{name}, repaired: {document:#}"
            );
        }
        // The waiting run's message is sent again.
        self.app.move_clock(chrono::TimeDelta::seconds(10));
        self.app.finish().await;
    }
}

async fn snapshot(app: &TestApp, tenant: TenantId) {
    let mut books = app.cx.store.lock_books(tenant).await.unwrap().unwrap();
    books.snapshot().await.unwrap();
    books.commit().await.unwrap();
}

fn sql(text: impl Into<String>) -> Do {
    Do::Sql(text.into())
}

/// Sets the amount of a run's ledger row.
fn amount(run: RunId, kind: &str, micros: i64) -> Do {
    sql(format!(
        "UPDATE ledger_transfers SET amount_usd_micros = {micros} WHERE run_id = '{run}' AND kind = '{kind}'"
    ))
}

/// Takes a run's ledger row away, aside.
fn away(run: RunId, kind: &str) -> Do {
    sql(format!(
        "CREATE TABLE IF NOT EXISTS aside AS SELECT * FROM ledger_transfers WHERE false;
         WITH gone AS (DELETE FROM ledger_transfers WHERE run_id = '{run}' AND kind = '{kind}' RETURNING *)
         INSERT INTO aside SELECT * FROM gone"
    ))
}

/// Puts back what was taken.
fn back() -> Do {
    sql("INSERT INTO ledger_transfers OVERRIDING SYSTEM VALUE SELECT * FROM aside; DROP TABLE aside")
}

/// Books one more row for a run; [`unbook`] takes it back.
fn book(tenant: TenantId, run: RunId, kind: &str, micros: i64) -> Do {
    let (debit, credit) = match kind {
        "hold" => ("available", "held"),
        "charge" => ("held", "revenue"),
        _ => ("held", "available"),
    };
    sql(format!(
        "INSERT INTO ledger_transfers (transfer_id, tenant_id, kind, debit_account, credit_account,
            amount_usd_micros, run_id, created_at)
         OVERRIDING SYSTEM VALUE VALUES (1000000, '{tenant}', '{kind}', '{debit}', '{credit}', {micros}, '{run}', now())"
    ))
}

fn unbook() -> Do {
    sql("DELETE FROM ledger_transfers WHERE transfer_id = 1000000")
}

/// Without the index that forbids a second row of a kind for a run.
fn without_index(step: Do) -> Vec<Do> {
    vec![sql("DROP INDEX ledger_transfers_run_id_kind_key"), step]
}

fn with_index(step: Do) -> Vec<Do> {
    let index = "CREATE UNIQUE INDEX ledger_transfers_run_id_kind_key ON ledger_transfers (run_id, kind)
         WHERE kind IN ('hold', 'charge', 'release')";
    vec![step, sql(index)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_in_the_ledger_is_named() {
    let it = Books::new().await;
    let (done, late, open, tenant) = (it.done, it.late, it.open, it.tenant.id);
    let nobody = RunId::new();
    let (rest, some) = (HOLD - COST, 100);
    let deposit = |reference: &str, micros: i64| {
        sql(format!(
            "UPDATE ledger_transfers SET amount_usd_micros = {micros}
             WHERE tenant_id = '{tenant}' AND reference = '{reference}'"
        ))
    };
    let cases = vec![
        Case {
            name: "a hold's amount",
            wrong: vec![amount(late, "hold", HOLD + some)],
            right: vec![amount(late, "hold", HOLD)],
            named: vec![("hold_amount", Some(late), HOLD, HOLD + some), ("held", None, HOLD, HOLD + some)],
            and: &[],
        },
        Case {
            name: "an open run's hold",
            wrong: vec![amount(open, "hold", HOLD - some)],
            right: vec![amount(open, "hold", HOLD)],
            named: vec![("hold_amount", Some(open), HOLD, HOLD - some)],
            and: &["snapshot_available", "snapshot_held"],
        },
        Case {
            name: "a charge's amount",
            wrong: vec![amount(late, "charge", COST + some)],
            right: vec![amount(late, "charge", COST)],
            named: vec![("charge_amount", Some(late), COST, COST + some)],
            and: &["held", "gate_available"],
        },
        Case {
            name: "a charge's amount under a snapshot",
            wrong: vec![amount(done, "charge", COST - some)],
            right: vec![amount(done, "charge", COST)],
            named: vec![
                ("charge_amount", Some(done), COST, COST - some),
                ("snapshot_charged", None, COST - some, COST),
                ("snapshot_held", None, some, 0),
            ],
            and: &[],
        },
        Case {
            name: "a release's amount",
            wrong: vec![amount(late, "release", rest - some)],
            right: vec![amount(late, "release", rest)],
            named: vec![("release_amount", Some(late), rest, rest - some), ("held", None, HOLD, HOLD + some)],
            and: &[],
        },
        Case {
            name: "a charge and a release that conserve the total",
            wrong: vec![amount(late, "charge", COST + some), amount(late, "release", rest - some)],
            right: vec![amount(late, "charge", COST), amount(late, "release", rest)],
            named: vec![
                ("charge_amount", Some(late), COST, COST + some),
                ("release_amount", Some(late), rest, rest - some),
            ],
            and: &["gate_available"],
        },
        Case {
            name: "run, charge and release altered in agreement",
            wrong: vec![
                amount(late, "charge", COST + some),
                amount(late, "release", rest - some),
                sql(format!("UPDATE runs SET actual_cost_usd_micros = {} WHERE run_id = '{late}'", COST + some)),
            ],
            right: vec![
                amount(late, "charge", COST),
                amount(late, "release", rest),
                sql(format!("UPDATE runs SET actual_cost_usd_micros = {COST} WHERE run_id = '{late}'")),
            ],
            named: vec![
                ("claim_cost", Some(late), COST, COST + some),
                ("receipt_cost", Some(late), COST + some, COST),
            ],
            and: &["gate_available"],
        },
        Case {
            name: "a charge doubled",
            wrong: without_index(book(tenant, late, "charge", COST)),
            right: with_index(unbook()),
            named: vec![("charge_twice", Some(late), COST, 2 * COST)],
            and: &["held", "gate_available"],
        },
        Case {
            name: "a charge in two rows of the right sum",
            wrong: without_index(sql(format!(
                "UPDATE ledger_transfers SET amount_usd_micros = {} WHERE run_id = '{late}' AND kind = 'charge';
                 INSERT INTO ledger_transfers (transfer_id, tenant_id, kind, debit_account, credit_account,
                     amount_usd_micros, run_id, created_at)
                 OVERRIDING SYSTEM VALUE
                 VALUES (1000000, '{tenant}', 'charge', 'held', 'revenue', {some}, '{late}', now())",
                COST - some
            ))),
            right: [vec![unbook()], with_index(amount(late, "charge", COST))].concat(),
            named: vec![("charge_twice", Some(late), COST, COST)],
            and: &[],
        },
        Case {
            name: "a charge deleted",
            wrong: vec![away(late, "charge")],
            right: vec![back()],
            named: vec![("charge_missing", Some(late), COST, 0), ("held", None, HOLD, HOLD + COST)],
            and: &["gate_available"],
        },
        Case {
            name: "a release deleted",
            wrong: vec![away(done, "release")],
            right: vec![back()],
            named: vec![("release_missing", Some(done), rest, 0)],
            and: &["snapshot_available", "snapshot_held"],
        },
        Case {
            name: "a run without a hold",
            wrong: vec![away(open, "hold")],
            right: vec![back()],
            named: vec![("hold_missing", Some(open), HOLD, 0)],
            and: &["snapshot_available", "snapshot_held"],
        },
        Case {
            name: "a hold without a run",
            wrong: vec![book(tenant, nobody, "hold", 500)],
            right: vec![unbook()],
            named: vec![("hold_without_run", Some(nobody), 0, 500), ("held", None, HOLD, HOLD + 500)],
            and: &[],
        },
        Case {
            name: "an open run that was charged",
            wrong: vec![book(tenant, open, "charge", 500)],
            right: vec![unbook()],
            named: vec![("charge_unexpected", Some(open), 0, 500), ("held", None, HOLD, HOLD - 500)],
            and: &["gate_available"],
        },
        Case {
            name: "a charge booked to another tenant",
            wrong: vec![sql(format!(
                "UPDATE ledger_transfers SET tenant_id = '{}' WHERE run_id = '{late}' AND kind = 'charge'",
                it.other.id
            ))],
            right: vec![sql(format!(
                "UPDATE ledger_transfers SET tenant_id = '{tenant}' WHERE run_id = '{late}' AND kind = 'charge'"
            ))],
            named: vec![("charge_missing", Some(late), COST, 0)],
            and: &["charge_of_another_tenant", "gate_available", "held"],
        },
        Case {
            name: "a run that has ended and whose hold is open",
            wrong: vec![away(late, "charge"), away(late, "release")],
            right: vec![back()],
            named: vec![("hold_open", Some(late), 0, HOLD), ("held", None, HOLD, 2 * HOLD)],
            and: &["gate_available"],
        },
        Case {
            name: "a correction that moves a hold",
            wrong: vec![sql(format!(
                "INSERT INTO ledger_transfers (transfer_id, tenant_id, kind, debit_account, credit_account,
                    amount_usd_micros, reference, created_at)
                 OVERRIDING SYSTEM VALUE
                 VALUES (1000000, '{tenant}', 'adjust', 'held', 'available', 7, 'why', now())"
            ))],
            right: vec![unbook()],
            named: vec![("held", None, HOLD, HOLD - 7)],
            and: &[],
        },
        Case {
            name: "a deposit under a snapshot",
            wrong: vec![deposit("first", 10_000_100)],
            right: vec![deposit("first", 10_000_000)],
            named: vec![("snapshot_deposited", None, 10_000_100, 10_000_000)],
            and: &["snapshot_available"],
        },
        Case {
            name: "a deposit above the newest snapshot, which the gate remembers",
            wrong: vec![deposit("second", HOLD + 1)],
            right: vec![deposit("second", HOLD)],
            named: vec![(
                "gate_available",
                None,
                11_000_000 + 1 - HOLD - 2 * COST,
                11_000_000 - HOLD - 2 * COST,
            )],
            and: &[],
        },
        Case {
            name: "a negative balance",
            wrong: vec![sql(format!(
                "INSERT INTO ledger_transfers (transfer_id, tenant_id, kind, debit_account, credit_account,
                    amount_usd_micros, reference, created_at)
                 OVERRIDING SYSTEM VALUE
                 VALUES (1000000, '{tenant}', 'adjust', 'available', 'revenue', 11000000, 'why', now())"
            ))],
            right: vec![unbook()],
            named: vec![("overspent", None, 0, -HOLD - 2 * COST)],
            and: &["gate_available"],
        },
    ];
    it.walk(cases).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_in_runs_and_snapshots_is_named() {
    let it = Books::new().await;
    let (late, open, tenant) = (it.late, it.open, it.tenant.id);
    let run = |run: RunId, set: &str| sql(format!("UPDATE runs SET {set} WHERE run_id = '{run}'"));
    let snapshot = |rank: &str, set: &str| {
        sql(format!(
            "UPDATE ledger_snapshots SET {set} WHERE tenant_id = '{tenant}' AND last_transfer_id =
                (SELECT {rank}(last_transfer_id) FROM ledger_snapshots WHERE tenant_id = '{tenant}')"
        ))
    };
    let cases = vec![
        Case {
            name: "a terminal run whose cost is not its charge",
            wrong: vec![run(late, "actual_cost_usd_micros = 12100")],
            right: vec![run(late, "actual_cost_usd_micros = 12000")],
            named: vec![
                ("charge_amount", Some(late), 12_100, COST),
                ("release_amount", Some(late), HOLD - 12_100, HOLD - COST),
                ("claim_cost", Some(late), COST, 12_100),
                ("receipt_cost", Some(late), 12_100, COST),
            ],
            and: &[],
        },
        Case {
            name: "a run's reservation",
            wrong: vec![run(open, "reserved_usd_micros = 900000")],
            right: vec![run(open, "reserved_usd_micros = 1000000")],
            named: vec![
                ("hold_amount", Some(open), 900_000, HOLD),
                ("held", None, 900_000, HOLD),
                ("gate_hold_amount", Some(open), 900_000, HOLD),
            ],
            and: &[],
        },
        Case {
            name: "a run that is gone",
            wrong: vec![sql(format!(
                "CREATE TABLE aside AS SELECT * FROM runs WHERE run_id = '{open}'; DELETE FROM runs WHERE run_id = '{open}'"
            ))],
            right: vec![sql("INSERT INTO runs SELECT * FROM aside; DROP TABLE aside")],
            named: vec![
                ("hold_without_run", Some(open), 0, HOLD),
                ("held", None, 0, HOLD),
                ("gate_hold_without_run", Some(open), 0, HOLD),
            ],
            and: &[],
        },
        Case {
            name: "a run that was ended by hand",
            wrong: vec![run(
                open,
                "status = 'EXPIRED', money_state = 'REFUNDED', actual_cost_usd_micros = 0, reason_code = 'x',
                 reason_detail = 'x', completed_at = now(), retention_until = now() + interval '1 day'",
            )],
            right: vec![run(
                open,
                "status = 'QUEUED', money_state = 'RESERVED', actual_cost_usd_micros = NULL, reason_code = NULL,
                 reason_detail = NULL, completed_at = NULL, retention_until = NULL",
            )],
            named: vec![("hold_open", Some(open), 0, HOLD), ("held", None, 0, HOLD)],
            and: &["gate_hold_without_run"],
        },
        Case {
            name: "a run that waits for a person",
            wrong: vec![run(
                open,
                "status = 'PROCESSING', finalize_stage = 'CLAIMED', money_state = 'AUDIT_REQUIRED',
                 finalize_token = gen_random_uuid(), claimed_at = now(), claim_cost_usd_micros = 12000,
                 result_key = 'k', result_sha256 = 's', reason_code = 'audit_required', reason_detail = 'why'",
            )],
            right: vec![run(
                open,
                "status = 'QUEUED', finalize_stage = NULL, money_state = 'RESERVED', finalize_token = NULL,
                 claimed_at = NULL, claim_cost_usd_micros = NULL, result_key = NULL, result_sha256 = NULL,
                 reason_code = NULL, reason_detail = NULL",
            )],
            named: vec![("audit_required", Some(open), HOLD, HOLD)],
            and: &[],
        },
        Case {
            name: "the newest snapshot, moved between accounts",
            wrong: vec![snapshot("max", "available_usd_micros = available_usd_micros + 1, held_usd_micros = held_usd_micros - 1")],
            right: vec![snapshot("max", "available_usd_micros = available_usd_micros - 1, held_usd_micros = held_usd_micros + 1")],
            named: vec![
                ("snapshot_available", None, 10_000_000 - HOLD - COST, 10_000_001 - HOLD - COST),
                ("snapshot_held", None, HOLD, HOLD - 1),
                ("held", None, HOLD, HOLD - 1),
            ],
            and: &[],
        },
        Case {
            name: "the newest snapshot, with money from nowhere",
            wrong: vec![snapshot("max", "available_usd_micros = available_usd_micros + 1, deposited_usd_micros = deposited_usd_micros + 1")],
            right: vec![snapshot("max", "available_usd_micros = available_usd_micros - 1, deposited_usd_micros = deposited_usd_micros - 1")],
            named: vec![
                ("snapshot_deposited", None, 10_000_000, 10_000_001),
                ("snapshot_available", None, 10_000_000 - HOLD - COST, 10_000_001 - HOLD - COST),
            ],
            and: &["gate_available"],
        },
        Case {
            name: "an older snapshot",
            wrong: vec![snapshot("min", "charged_usd_micros = charged_usd_micros + 1, available_usd_micros = available_usd_micros - 1")],
            right: vec![snapshot("min", "charged_usd_micros = charged_usd_micros - 1, available_usd_micros = available_usd_micros + 1")],
            // The next one no longer follows from it either.
            named: vec![
                ("snapshot_charged", None, COST, COST + 1),
                ("snapshot_charged", None, COST + 1, COST),
                ("snapshot_available", None, 10_000_000 - COST, 9_999_999 - COST),
                ("snapshot_available", None, 9_999_999 - HOLD - COST, 10_000_000 - HOLD - COST),
            ],
            and: &[],
        },
    ];
    it.walk(cases).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_at_the_gate_is_named() {
    let it = Books::new().await;
    let (open, nobody) = (it.open, RunId::new());
    let redis = |words: &[&str]| Do::Redis(words.iter().map(|word| (*word).to_owned()).collect());
    let (budget, holds) = (it.gate("budget"), it.gate("holds"));
    let more = |by: &str| redis(&["HINCRBY", &budget, "available", by]);
    let hold = |by: &str| redis(&["HINCRBY", &holds, &open.to_string(), by]);
    let right = 11_000_000 - HOLD - 2 * COST;
    let cases = vec![
        Case {
            name: "one micro more",
            wrong: vec![more("1")],
            right: vec![more("-1")],
            named: vec![("gate_available", None, right, right + 1)],
            and: &[],
        },
        Case {
            name: "one micro less",
            wrong: vec![more("-1")],
            right: vec![more("1")],
            named: vec![("gate_available", None, right, right - 1)],
            and: &[],
        },
        Case {
            name: "a reservation one micro above",
            wrong: vec![hold("1")],
            right: vec![hold("-1")],
            named: vec![
                ("gate_hold_amount", Some(open), HOLD, HOLD + 1),
                ("gate_available", None, right - 1, right),
            ],
            and: &[],
        },
        Case {
            name: "a reservation one micro below, and the total right",
            wrong: vec![hold("-1"), more("1")],
            right: vec![hold("1"), more("-1")],
            named: vec![("gate_hold_amount", Some(open), HOLD, HOLD - 1)],
            and: &[],
        },
        Case {
            name: "a reservation without a run, and the total right",
            wrong: vec![redis(&["HSET", &holds, &nobody.to_string(), "500"]), more("-500")],
            right: vec![redis(&["HDEL", &holds, &nobody.to_string()]), more("500")],
            named: vec![("gate_hold_without_run", Some(nobody), 0, 500)],
            and: &[],
        },
        Case {
            name: "an open run without a reservation, and the total right",
            wrong: vec![redis(&["HDEL", &holds, &open.to_string()]), more("1000000")],
            right: vec![redis(&["HSET", &holds, &open.to_string(), "1000000"]), more("-1000000")],
            named: vec![("gate_hold_missing", Some(open), HOLD, 0)],
            and: &[],
        },
    ];
    it.walk(cases).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_result_is_named() {
    let it = Books::new().await;
    let done = it.done;
    let wrong = |name, changes: Vec<(&'static str, Option<String>)>, kind, found| Case {
        name,
        wrong: vec![Do::Put(changes, |_| ())],
        right: vec![Do::RestoreObject],
        named: vec![(kind, Some(done), COST, found)],
        and: &[],
    };
    let bytes = |name, alter: fn(&mut Vec<u8>)| Case {
        name,
        wrong: vec![Do::Put(Vec::new(), alter)],
        right: vec![Do::RestoreObject],
        named: vec![("object_bytes", Some(done), COST, COST)],
        and: &[],
    };
    let cost = |text: &str| vec![("actual-cost-usd-micros", Some(text.to_owned()))];
    let cases = vec![
        wrong("a receipt of another cost", cost("12100"), "receipt_cost", 12_100),
        wrong("a receipt that is one micro off", cost("11999"), "receipt_cost", 11_999),
        wrong("a receipt of no cost", vec![("actual-cost-usd-micros", None)], "receipt_malformed", 0),
        wrong("a receipt of a cost in dollars", cost("0.0120"), "receipt_malformed", 0),
        wrong("a receipt of a cost below zero", cost("-12000"), "receipt_malformed", 0),
        wrong("a receipt without a run", vec![("run-id", None)], "receipt_malformed", 0),
        wrong("another run's receipt", vec![("run-id", Some(it.late.to_string()))], "receipt_run", COST),
        wrong(
            "another tenant's receipt",
            vec![("tenant-id", Some(it.other.id.to_string()))],
            "receipt_run",
            COST,
        ),
        wrong("a receipt of other bytes", vec![("sha256", Some("0".repeat(64)))], "receipt_sha256", COST),
        wrong("a receipt of no bytes", vec![("sha256", None)], "receipt_malformed", 0),
        bytes("bytes changed, as many as before", |bytes| bytes[0] ^= 1),
        bytes("bytes lost", |bytes| bytes.truncate(bytes.len() - 1)),
        bytes("no bytes", Vec::clear),
        Case {
            name: "no object",
            wrong: vec![Do::DeleteObject],
            right: vec![Do::RestoreObject],
            named: vec![("object_missing", Some(done), COST, 0)],
            and: &[],
        },
    ];
    it.walk(cases).await;
}

/// An audit runs while the product does: traffic is no difference, and hides none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_traffic_nothing_is_made_up_and_nothing_is_overlooked() {
    let app = Arc::new(TestApp::start().await);
    let tenant = app.tenant("1000").await;
    let done = Arc::new(AtomicBool::new(false));
    let traffic = {
        let (app, tenant, done) = (Arc::clone(&app), tenant.clone(), Arc::clone(&done));
        tokio::spawn(async move {
            let mut number = 0;
            while !done.load(Ordering::Relaxed) {
                app.submit(&tenant, &format!("k{number}"), "1").await;
                app.work().await;
                number += 1;
            }
            number
        })
    };
    let mut audits = 0;
    while audits < 10 {
        let audit = dpp::flow::audit::audit(&app.cx, false).await.unwrap();
        assert!(audit.differences.is_empty(), "{:?}", audit.differences);
        audits += 1;
    }
    let budget = format!("dpp:{{{}}}:budget", tenant.id);
    let _: i64 = app.place.redis(&["HINCRBY", &budget, "available", "1"]).await;
    let audit = dpp::flow::audit::audit(&app.cx, false).await.unwrap();
    let found: Vec<_> = audit
        .differences
        .iter()
        .map(|line| (line.kind.as_str(), line.found_usd_micros - line.expected_usd_micros))
        .collect();
    assert_eq!(found, [("gate_available", 1)]);
    done.store(true, Ordering::Relaxed);
    assert!(traffic.await.unwrap() > 0);
    Arc::into_inner(app).unwrap().finish().await;
}
