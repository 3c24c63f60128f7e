//! Usage: the ledger's charges by UTC day, at any moment, whatever has been rolled up.

use chrono::{NaiveDate, TimeDelta};
use dpp::{domain::id::RunId, reaper::Pass};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    is_problem,
    past::{Past, end_epoch},
};
use crate::harness::{DECISION_COST, Tenant, TestApp, until};

async fn usage(app: &TestApp, tenant: &Tenant, query: &str) -> Value {
    let answer = app.get(&format!("/v1/usage{query}"), &tenant.key).await;
    assert_eq!((answer.status, answer.header("cache-control")), (200, Some("no-store")), "{answer:?}");
    answer.body
}

/// Days with their runs and charges, in order.
fn days(usage: &Value) -> Vec<(String, u64, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let day = |day: &Value| (text(&day["date"]), day["runs"].as_u64().unwrap(), text(&day["charged_usd"]));
    usage["days"].as_array().unwrap().iter().map(day).collect()
}

/// Counts what is rolled up.
async fn rolled_up(app: &TestApp) -> String {
    app.place.sql("SELECT coalesce(sum(runs), 0) FROM tenant_usage_daily").await[0][0].clone().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_is_what_was_charged_before_and_after_it_is_rolled_up() {
    let app = TestApp::start().await;
    let (tenant, other) = (app.tenant("10").await, app.tenant("10").await);
    app.submit(&tenant, "one", "1").await;
    app.submit(&tenant, "two", "1").await;
    app.submit(&other, "one", "1").await;
    assert_eq!(
        usage(&app, &tenant, "").await["total"],
        json!({"runs": 0, "charged_usd": "0.0000"}),
        "not ended"
    );
    app.work().await;

    let today = app.cx.store.now().await.unwrap().date_naive();
    let expected = json!({
        "start_date": today.to_string()[..8].to_owned() + "01",
        "end_date": today,
        "total": {"runs": 2, "charged_usd": "0.0240"},
        "packs": [{"pack_type": "decision", "runs": 2, "charged_usd": "0.0240"}],
        "days": [{
            "date": today, "runs": 2, "charged_usd": "0.0240",
            "packs": [{"pack_type": "decision", "runs": 2, "charged_usd": "0.0240"}],
        }],
    });
    assert_eq!(usage(&app, &tenant, "").await, expected);
    assert_eq!(app.get("/v1/budget", &tenant.key).await.body["charged_usd"], "0.0240");

    // The day is not over: what it comes to is read from the ledger.
    assert_eq!(app.pass(Pass::Usage).await.found, 0);
    app.move_clock(TimeDelta::days(1));
    let query = format!("?start_date={today}&end_date={today}");
    let of_the_day = usage(&app, &tenant, &query).await;
    assert_eq!(of_the_day["days"], expected["days"]);
    let tally = app.pass(Pass::Usage).await;
    assert_eq!((tally.found, tally.changed), (2, 2), "both tenants");
    assert_eq!(rolled_up(&app).await, "3");
    assert_eq!(usage(&app, &tenant, &query).await, of_the_day);
    assert_eq!(app.pass(Pass::Usage).await.found, 0, "nothing is left");

    // A run of the next day, with the first day in the table and the second in the ledger.
    app.submit(&tenant, "three", "1").await;
    app.work().await;
    let both = usage(&app, &tenant, &format!("?start_date={today}")).await;
    assert_eq!(both["total"], json!({"runs": 3, "charged_usd": "0.0360"}));
    assert_eq!(days(&both).len(), 2);
    assert_eq!(days(&both)[1].2, DECISION_COST);
    app.finish().await;
}

/// A step takes so many ledger rows of the tenant, and none beyond its own newest snapshot, whatever others have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_is_rolled_up_in_steps_up_to_the_tenants_own_snapshot() {
    /// What a step takes: the store's rows for a step, and the one that ends it.
    const STEP: usize = 20_001;
    let app = TestApp::start().await;
    let (tenant, other) = (app.tenant("10").await, app.tenant("10").await);
    let deposits = async |count: usize| {
        app.place
            .sql(&format!(
                "INSERT INTO ledger_transfers (tenant_id, kind, debit_account, credit_account, amount_usd_micros,
                    reference, created_at)
                 SELECT tenant_id, 'deposit', 'funding', 'available', 100, gen_random_uuid(), now()
                 FROM generate_series(1, {count}), tenants"
            ))
            .await;
    };
    let run = async |key: &str| {
        app.submit(&tenant, key, "1").await;
        app.work().await;
    };
    let snapshot = async |tenant: &Tenant| {
        let mut books = app.cx.store.lock_books(tenant.id).await.unwrap().unwrap();
        books.snapshot().await.unwrap();
        books.commit().await.unwrap();
    };
    let step = async || app.cx.store.roll_up_usage(tenant.id).await.unwrap();
    assert_eq!(step().await, None, "no snapshot");

    run("one").await;
    snapshot(&tenant).await;
    // Beyond the snapshot there is more than a step, and its first is a run.
    run("two").await;
    deposits(2 * STEP - 3).await;
    snapshot(&other).await;
    assert_eq!(step().await, Some(false));
    assert_eq!((step().await, rolled_up(&app).await.as_str()), (None, "1"));

    snapshot(&tenant).await;
    run("three").await;
    assert_eq!(step().await, Some(true), "a step");
    assert_eq!(step().await, Some(false), "and another, to the last row");
    assert_eq!((step().await, rolled_up(&app).await.as_str()), (None, "2"));
    assert_eq!(usage(&app, &tenant, "").await["total"], json!({"runs": 3, "charged_usd": "0.0360"}));
    dpp::flow::rebuild::rebuild(&app.cx, tenant.id).await.unwrap();
    dpp::flow::rebuild::rebuild(&app.cx, other.id).await.unwrap();
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_is_a_day_in_utc_whatever_the_calendar_does() {
    let app = TestApp::start().await;
    let tenant = app.tenant("100").await;
    let runs = [
        // A leap day, to the microsecond.
        (100, "2028-02-28 23:59:59.999999+00"),
        (200, "2028-02-29 00:00:00+00"),
        (300, "2028-02-29 23:59:59.999999+00"),
        (400, "2028-03-01 00:00:00+00"),
        // Summer time begins and ends in New York and in Berlin; at home it is another day.
        (500, "2028-03-12 01:59:59-05"),
        (600, "2028-03-12 23:30:00-04"),
        (700, "2028-03-26 00:30:00+01"),
        (800, "2028-10-29 00:30:00+02"),
        (900, "2028-10-29 23:30:00+01"),
        (1_000, "2028-12-31 23:59:59.999999+00"),
    ];
    for (cost, ended_at) in runs {
        Past::decision(cost, ended_at).write(&app, &tenant).await;
    }
    let row = |date: &str, runs, charged: &str| (date.to_owned(), runs, charged.to_owned());
    let year = vec![
        row("2028-02-28", 1, "0.0001"),
        row("2028-02-29", 2, "0.0005"),
        row("2028-03-01", 1, "0.0004"),
        row("2028-03-12", 1, "0.0005"),
        row("2028-03-13", 1, "0.0006"),
        row("2028-03-25", 1, "0.0007"),
        row("2028-10-28", 1, "0.0008"),
        row("2028-10-29", 1, "0.0009"),
        row("2028-12-31", 1, "0.0010"),
    ];
    for rolled in [false, true] {
        if rolled {
            let mut books = app.cx.store.lock_books(tenant.id).await.unwrap().unwrap();
            books.snapshot().await.unwrap();
            books.commit().await.unwrap();
            assert_eq!(app.pass(Pass::Usage).await.changed, 1);
            assert_eq!(rolled_up(&app).await, "10");
        }
        // 366 days.
        let all = usage(&app, &tenant, "?start_date=2028-01-01&end_date=2028-12-31").await;
        assert_eq!(days(&all), year);
        assert_eq!(all["total"], json!({"runs": 10, "charged_usd": "0.0055"}));
        let leap = usage(&app, &tenant, "?start_date=2028-02-29&end_date=2028-02-29").await;
        assert_eq!(days(&leap), year[1..2]);
        let month = usage(&app, &tenant, "?end_date=2028-02-29").await;
        assert_eq!((&month["start_date"], days(&month)), (&json!("2028-02-01"), year[..2].to_vec()));
        let summer = usage(&app, &tenant, "?start_date=2028-03-12&end_date=2028-10-28").await;
        assert_eq!(days(&summer), year[3..7]);
        // Whatever a session's own zone is.
        for zone in ["Pacific/Auckland", "America/New_York", "UTC"] {
            let statement = include_str!("../../../src/store/sql/usage.sql")
                .replace("$1", &format!("'{}'", tenant.id))
                .replace("$2", "'2028-01-01'")
                .replace("$3", "'2028-12-31'");
            let rows = app.place.sql(&format!("SET timezone = '{zone}'; {statement}")).await;
            let rows: Vec<_> = rows.into_iter().map(|row| row[0].clone().unwrap()).collect();
            assert_eq!(rows, year.iter().map(|row| row.0.clone()).collect::<Vec<_>>(), "{zone}");
        }
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_that_is_none_is_refused_with_what_would_be_right() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    let wrong = [
        ("?start_date=2027-02-29", "/start_date"),
        ("?start_date=2028-2-1", "/start_date"),
        ("?start_date=2028-02-30", "/start_date"),
        ("?start_date=20280201", "/start_date"),
        ("?start_date=%2B028-02-01", "/start_date"),
        ("?start_date=", "/start_date"),
        ("?end_date=today", "/end_date"),
        ("?end_date=2028-02-01T00:00:00Z", "/end_date"),
        ("?end_date=%F0%9F%98%80%F0%9F%98%8000", "/end_date"),
        ("?start_date=2028-02-02&end_date=2028-02-01", "/start_date"),
        ("?start_date=2027-01-01&end_date=2028-01-02", "/end_date"),
        ("?start_date=2000-01-01", "/end_date"),
        ("?start_date=2028-01-01&start_date=2028-01-01", "/start_date"),
        ("?from=2028-01-01", "/from"),
    ];
    for (query, pointer) in wrong {
        let answer = app.get(&format!("/v1/usage{query}"), &tenant.key).await;
        is_problem(&answer, 400, "invalid-request");
        assert_eq!(answer.body["errors"][0]["pointer"], pointer, "{query}: {answer:?}");
    }
    // The longest range, days to come, and the calendar's own ends.
    for query in [
        "?start_date=2027-01-02&end_date=2028-01-02",
        "?start_date=2999-01-01&end_date=2999-12-31",
        "?start_date=2999-12-31",
        "?start_date=0001-01-01&end_date=0001-01-01",
        "?start_date=9999-12-31&end_date=9999-12-31",
    ] {
        assert_eq!(usage(&app, &tenant, query).await["total"]["runs"], 0, "{query}");
    }
    app.finish().await;
}

/// A transaction that began yesterday, drew its ledger ids, and commits only after others with larger ids
/// have committed and the day is being rolled up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_charge_that_commits_late_is_not_missed() {
    let app = TestApp::start().await;
    let tenant = app.tenant("10").await;
    let today = app.cx.store.now().await.unwrap();
    let at = today.to_rfc3339();
    let (client, connection) =
        tokio_postgres::connect(&app.place.database_url, tokio_postgres::NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    client
        .batch_execute(&format!("BEGIN; {}", Past::decision(300, &at).sql(&tenant, RunId::new())))
        .await
        .unwrap();
    // Larger ids, committed first.
    app.place.sql(&format!("BEGIN; {} COMMIT", Past::decision(500, &at).sql(&tenant, RunId::new()))).await;
    app.move_clock(TimeDelta::days(1));
    let cx = app.cx.clone();
    let pass = tokio::spawn(async move { Pass::Usage.once(&cx).await });
    until("the roll-up waits for the open transaction", async || {
        let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        app.place.sql(waiting).await[0][0].as_deref() == Some("1")
    })
    .await;
    client.batch_execute("COMMIT").await.unwrap();
    drop(client);
    connection.await.unwrap().unwrap();
    end_epoch(&app, &tenant).await;
    assert_eq!(pass.await.unwrap().unwrap().changed, 1);
    assert_eq!(rolled_up(&app).await, "2");
    let query = format!("?start_date={0}&end_date={0}", today.date_naive());
    let expected = json!({"runs": 2, "charged_usd": "0.0008"});
    assert_eq!(usage(&app, &tenant, &query).await["total"], expected);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_auditor_sees_a_day_that_was_rolled_up_wrong() {
    let app = TestApp::start().await;
    let tenant = app.tenant("10").await;
    Past::decision(300, "2026-01-31 12:00:00+00").write(&app, &tenant).await;
    app.move_clock(TimeDelta::days(1));
    assert_eq!(app.pass(Pass::Usage).await.changed, 1);
    assert_eq!(dpp::flow::audit::audit(&app.cx, false).await.unwrap().differences, []);
    for (wrong, right) in [
        ("charged_usd_micros = 400", "charged_usd_micros = 300"),
        ("runs = 2", "runs = 1"),
        ("usage_date = '2026-02-01'", "usage_date = '2026-01-31'"),
    ] {
        app.place.sql(&format!("UPDATE tenant_usage_daily SET {wrong}")).await;
        let findings = dpp::flow::audit::audit(&app.cx, false).await.unwrap().differences;
        assert!(
            !findings.is_empty() && findings.iter().all(|finding| finding.kind == "usage"),
            "{findings:?}"
        );
        app.place.sql(&format!("UPDATE tenant_usage_daily SET {right}")).await;
    }
    // What the runbook says: from then on the ledger speaks for itself, and is rolled up anew.
    app.place.sql("UPDATE tenant_usage_daily SET runs = 7, charged_usd_micros = 7").await;
    let anew =
        "BEGIN; UPDATE tenant_usage_marks SET last_transfer_id = 0; DELETE FROM tenant_usage_daily; COMMIT";
    app.place.sql(anew).await;
    let expected = json!({"runs": 1, "charged_usd": "0.0003"});
    for rolled in [0, 1] {
        assert_eq!(usage(&app, &tenant, "?end_date=2026-01-31").await["total"], expected);
        assert_eq!(app.pass(Pass::Usage).await.changed, 1 - rolled);
    }
    assert_eq!(dpp::flow::audit::audit(&app.cx, false).await.unwrap().differences, []);
    app.finish().await;
}

#[derive(Clone, Debug)]
enum Step {
    End { tenant: usize, pack: &'static str, cost: i64, hour: i64 },
    Snapshot { tenant: usize },
    RollUp,
    RollUpTwice,
    Wait { hours: i64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let cost = prop_oneof![Just(0), Just(10_000), (1..100_i64).prop_map(|grains| grains * 100)];
    let end = (0..2_usize, prop::sample::select(&["decision", "url"][..]), cost, -60..60_i64)
        .prop_map(|(tenant, pack, cost, hour)| Step::End { tenant, pack, cost, hour });
    let step = prop_oneof![
        6 => end,
        2 => (0..2_usize).prop_map(|tenant| Step::Snapshot { tenant }),
        2 => Just(Step::RollUp),
        1 => Just(Step::RollUpTwice),
        1 => (1..30_i64).prop_map(|hours| Step::Wait { hours }),
    ];
    prop::collection::vec(step, 1..25)
}

/// What the ledger says, asked in another way than the product asks.
async fn ledger(
    app: &TestApp,
    tenant: &Tenant,
    first: NaiveDate,
    last: NaiveDate,
) -> Vec<(String, u64, String)> {
    let rows = app
        .place
        .sql(&format!(
            "SELECT to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD'), count(DISTINCT run_id),
                to_char(coalesce(sum(amount_usd_micros) FILTER (WHERE kind = 'charge'), 0) / 1000000.0, 'FM999999990.0000')
             FROM ledger_transfers WHERE tenant_id = '{}' AND kind IN ('charge', 'release')
                AND created_at >= '{first} 00:00:00+00' AND created_at < timestamptz '{last} 00:00:00+00' + interval '24 hours'
             GROUP BY 1 ORDER BY 1",
            tenant.id
        ))
        .await;
    rows.into_iter()
        .map(|row| {
            let text = |column: usize| row[column].clone().unwrap();
            (text(0), text(1).parse().unwrap(), text(2))
        })
        .collect()
}

async fn follow(steps: Vec<Step>) {
    let app = TestApp::start().await;
    let tenants = [app.tenant("10").await, app.tenant("10").await];
    let start = app.cx.store.now().await.unwrap();
    let (first, last) =
        ((start - TimeDelta::days(4)).date_naive(), (start + TimeDelta::days(4)).date_naive());
    for step in steps {
        match step.clone() {
            Step::End { tenant, pack, cost, hour } => {
                let ended_at = (start + TimeDelta::hours(hour)).to_rfc3339();
                let past = Past { pack_type: pack, reserved_micros: 10_000, cost_micros: cost, ended_at };
                past.write(&app, &tenants[tenant]).await;
            }
            Step::Snapshot { tenant } => {
                let mut books = app.cx.store.lock_books(tenants[tenant].id).await.unwrap().unwrap();
                books.snapshot().await.unwrap();
                books.commit().await.unwrap();
            }
            Step::RollUp => drop(app.pass(Pass::Usage).await),
            Step::RollUpTwice => {
                let (one, two) = tokio::join!(Pass::Usage.once(&app.cx), Pass::Usage.once(&app.cx));
                assert_eq!((one.unwrap().failed, two.unwrap().failed), (0, 0));
            }
            Step::Wait { hours } => app.move_clock(TimeDelta::hours(hours)),
        }
        for tenant in &tenants {
            let shown = usage(&app, tenant, &format!("?start_date={first}&end_date={last}")).await;
            assert_eq!(days(&shown), ledger(&app, tenant, first, last).await, "after {step:?}");
            let charged = &app.get("/v1/budget", &tenant.key).await.body["charged_usd"];
            assert_eq!(&shown["total"]["charged_usd"], charged);
        }
    }
    app.finish().await;
}

#[test]
fn usage_is_the_ledgers_at_any_moment() {
    let mut runner =
        proptest::test_runner::TestRunner::new(ProptestConfig { cases: 8, ..Default::default() });
    let outcome = runner.run(&steps(), |steps| {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(follow(steps));
        Ok(())
    });
    outcome.unwrap();
}
