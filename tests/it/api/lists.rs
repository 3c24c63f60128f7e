//! Lists: newest first, page by page, and a cursor that is good for nothing else.

use std::collections::BTreeSet;

use chrono::TimeDelta;
use serde_json::{Value, json};

use super::{is_problem, past::Past};
use crate::harness::{Answer, Tenant, TestApp, decision};

async fn list(app: &TestApp, tenant: &Tenant, path: &str) -> Answer {
    let answer = app.get(path, &tenant.key).await;
    assert_eq!((answer.status, answer.header("cache-control")), (200, Some("no-store")), "{answer:?}");
    answer
}

/// Follows `Link` from page to page to the end.
async fn all(app: &TestApp, tenant: &Tenant, path: &str) -> Vec<Vec<Value>> {
    let mut pages = Vec::new();
    let mut next = Some(path.to_owned());
    while let Some(path) = next {
        let answer = list(app, tenant, &path).await;
        next = answer.header("link").map(|link| {
            let url = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap();
            let path = url.strip_prefix(&app.url).expect("an absolute URL").to_owned();
            let cursor = answer.body["next_cursor"].as_str().expect("with a link goes a cursor");
            assert!(path.ends_with(&format!("cursor={cursor}")), "{path}");
            path
        });
        assert_eq!(next.is_none(), answer.body["next_cursor"].is_null());
        pages.push(answer.body["data"].as_array().unwrap().clone());
    }
    pages
}

fn ids(pages: &[Vec<Value>]) -> Vec<String> {
    pages.iter().flatten().map(|run| run["run_id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_are_listed_newest_first_and_as_they_are_shown_alone() {
    let app = TestApp::start().await;
    let (tenant, other) = (app.tenant("10").await, app.tenant("10").await);
    assert_eq!(list(&app, &tenant, "/v1/runs").await.body, json!({"data": [], "next_cursor": null}));
    let mut made = Vec::new();
    for number in 0..7 {
        made.push(app.submit(&tenant, &format!("run-{number}"), "1").await.to_string());
        if number == 3 {
            app.work().await;
        }
    }
    app.submit(&other, "one", "1").await;
    made.reverse();
    for limit in [1, 2, 3, 7, 100] {
        let pages = all(&app, &tenant, &format!("/v1/runs?limit={limit}")).await;
        assert_eq!(ids(&pages), made);
        assert_eq!(pages.len(), 7_usize.div_ceil(limit), "no page is empty or short");
    }
    let mut shown = list(&app, &tenant, "/v1/runs").await.body["data"].clone();
    for run in shown.as_array_mut().unwrap() {
        let mut alone =
            app.get(&format!("/v1/runs/{}", run["run_id"].as_str().unwrap()), &tenant.key).await.body;
        // A link is made anew each time.
        assert_eq!(run["status"] == "COMPLETED", run["result_url"].is_string(), "{run}");
        for body in [&mut *run, &mut alone] {
            (body["result_url"], body["result_url_expires_at"]) = (Value::Null, Value::Null);
        }
        assert_eq!(*run, alone);
    }

    // What is new while somebody reads does not move what follows.
    let first = list(&app, &tenant, "/v1/runs?limit=3").await;
    app.submit(&tenant, "late", "1").await;
    let cursor = first.body["next_cursor"].as_str().unwrap().to_owned();
    let rest = all(&app, &tenant, &format!("/v1/runs?limit=2&cursor={cursor}")).await;
    assert_eq!(ids(&rest), made[3..]);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_shows_what_its_filter_asks_for() {
    let app = TestApp::start().await;
    let tenant = app.tenant("10").await;
    let done = app.submit(&tenant, "done", "1").await.to_string();
    app.work().await;
    app.move_clock(TimeDelta::hours(1));
    let mut page =
        json!({"pack_type": "url", "max_cost_usd": "0.5", "inputs": {"url": "http://127.0.0.1:9/"}});
    let url = app.post(&tenant, "url", &page).await.run_id().to_string();
    page["max_cost_usd"] = json!("1");
    app.move_clock(TimeDelta::hours(1));
    let waiting = app.submit(&tenant, "waiting", "1").await.to_string();
    let at = async |run_id: &str| {
        let run = app.get(&format!("/v1/runs/{run_id}"), &tenant.key).await.body;
        run["created_at"].as_str().unwrap().to_owned()
    };
    let middle = at(&url).await;
    let cases = [
        (String::new(), vec![&waiting, &url, &done]),
        ("status=QUEUED".to_owned(), vec![&waiting, &url]),
        ("status=COMPLETED".to_owned(), vec![&done]),
        ("status=PROCESSING".to_owned(), vec![]),
        ("status=CANCELLED".to_owned(), vec![]),
        ("pack_type=url".to_owned(), vec![&url]),
        ("pack_type=decision&status=QUEUED".to_owned(), vec![&waiting]),
        ("pack_type=never-sold".to_owned(), vec![]),
        // From an instant on, and before another: ranges that touch share nothing.
        (format!("created_after={middle}"), vec![&waiting, &url]),
        (format!("created_before={middle}"), vec![&done]),
        (format!("created_after={middle}&created_before={middle}"), vec![]),
        (
            format!("created_after={}&created_before={}", at(&done).await, at(&waiting).await),
            vec![&url, &done],
        ),
    ];
    for (query, expected) in cases {
        let expected: Vec<_> = expected.into_iter().cloned().collect();
        for limit in [1, 100] {
            let pages = all(&app, &tenant, &format!("/v1/runs?{query}&limit={limit}")).await;
            assert_eq!(ids(&pages), expected, "{query}");
        }
    }
    for (query, pointer) in [
        ("status=queued", "/status"),
        ("status=", "/status"),
        ("pack_type=", "/pack_type"),
        ("pack_type=a%00b", "/pack_type"),
        ("created_after=2028-02-29", "/created_after"),
        ("created_before=2028-02-30T00:00:00Z", "/created_before"),
        ("limit=0", "/limit"),
        ("limit=101", "/limit"),
        ("limit=-1", "/limit"),
        ("limit=%2B5", "/limit"),
        ("limit=1&limit=2", "/limit"),
        ("page=2", "/page"),
        ("sta~tus/=x", "/sta~0tus~1"),
    ] {
        let answer = app.get(&format!("/v1/runs?{query}"), &tenant.key).await;
        is_problem(&answer, 400, "invalid-request");
        assert_eq!(answer.body["errors"][0]["pointer"], pointer, "{answer:?}");
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_leaves_the_list_at_the_end_of_its_retention() {
    let app = TestApp::start().await;
    let tenant = app.tenant("10").await;
    let (old, new) = (
        Past::decision(100, "2026-01-01 00:00:00+00").write(&app, &tenant).await,
        app.submit(&tenant, "new", "1").await.to_string(),
    );
    let retention = |at: &str| format!("UPDATE runs SET retention_until = {at} WHERE run_id = '{old}'");
    // To the microsecond: a statement's own instant is past the retention.
    app.place.sql(&retention("statement_timestamp()")).await;
    assert_eq!(ids(&all(&app, &tenant, "/v1/runs").await), [new.as_str()]);
    is_problem(&app.get(&format!("/v1/runs/{old}"), &tenant.key).await, 410, "run-expired");
    app.place.sql(&retention("statement_timestamp() + interval '1 hour'")).await;
    assert_eq!(ids(&all(&app, &tenant, "/v1/runs").await), [new.clone(), old.to_string()]);
    app.move_clock(TimeDelta::hours(1));
    assert_eq!(ids(&all(&app, &tenant, "/v1/runs").await), [new.as_str()]);
    app.reap().await;
    assert_eq!(ids(&all(&app, &tenant, "/v1/runs").await), [new.as_str()], "purged");
    // What it cost stays in the books.
    let entries = all(&app, &tenant, "/v1/ledger").await.concat();
    assert!(entries.iter().any(|entry| entry["run_id"] == old.to_string() && entry["kind"] == "charge"));
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_is_good_for_its_list_its_tenant_and_its_filter_alone() {
    let app = TestApp::start().await;
    let (tenant, other) = (app.tenant("10").await, app.tenant("10").await);
    for number in 0..4 {
        app.submit(&tenant, &format!("run-{number}"), "1").await;
        app.submit(&other, &format!("run-{number}"), "1").await;
    }
    let cursor_of = async |tenant: &Tenant, path: &str| {
        list(&app, tenant, path).await.body["next_cursor"].as_str().unwrap().to_owned()
    };
    let cursor = cursor_of(&tenant, "/v1/runs?limit=2").await;
    // The size of a page is no part of what a cursor is bound to; nor is the process that made it.
    assert_eq!(
        list(&app, &tenant, &format!("/v1/runs?limit=1&cursor={cursor}")).await.body["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    let replica = TestApp::on(app.place.clone(), &[]);
    let elsewhere = replica.get(&format!("/v1/runs?cursor={cursor}"), &tenant.key).await;
    assert_eq!((elsewhere.status, elsewhere.body["data"].as_array().unwrap().len()), (200, 2));
    replica.abandon();

    let filtered = cursor_of(&tenant, "/v1/runs?limit=2&status=QUEUED").await;
    let entries = cursor_of(&tenant, "/v1/ledger?limit=2").await;
    let foreign = cursor_of(&other, "/v1/runs?limit=2").await;
    let mut wrong = vec![
        format!("/v1/runs?cursor={filtered}"),
        format!("/v1/runs?status=COMPLETED&cursor={filtered}"),
        format!("/v1/runs?status=QUEUED&pack_type=url&cursor={filtered}"),
        format!("/v1/runs?status=QUEUED&cursor={cursor}"),
        format!("/v1/runs?created_before=2999-01-01T00:00:00Z&cursor={cursor}"),
        format!("/v1/runs?cursor={entries}"),
        format!("/v1/runs?cursor={foreign}"),
        format!("/v1/ledger?cursor={cursor}"),
        "/v1/runs?cursor=".to_owned(),
        "/v1/runs?cursor=AAAA".to_owned(),
        "/v1/runs?cursor=%F0%9F%98%80".to_owned(),
        format!("/v1/runs?cursor={cursor}%3D"),
        format!("/v1/runs?cursor={}", "A".repeat(4_000)),
    ];
    // Every character counts.
    for at in 0..cursor.len() {
        let other = if cursor.as_bytes()[at] == b'A' { "B" } else { "A" };
        wrong.push(format!("/v1/runs?cursor={}{other}{}", &cursor[..at], &cursor[at + 1..]));
        wrong.push(format!("/v1/runs?cursor={}", &cursor[..at]));
    }
    for path in &wrong {
        is_problem(&app.get(path, &tenant.key).await, 400, "invalid-cursor");
    }
    app.finish().await;
}

/// Every entry adds up, from the first to what the budget says now, wherever snapshots lie.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_statement_shows_every_entry_and_what_could_be_spent_after_it() {
    let app = TestApp::start().await;
    let (tenant, other) = (app.tenant("10").await, app.tenant("99").await);
    let micros = |value: &Value| -> i64 {
        value.as_str().unwrap().parse::<dpp::domain::money::UsdMicros>().unwrap().get()
    };
    for round in 0..4 {
        app.submit(&tenant, &format!("one-{round}"), "1").await;
        app.submit(&other, &format!("one-{round}"), "1").await;
        app.work().await;
        app.submit(&tenant, &format!("two-{round}"), "0.5").await;
        if round > 0 {
            let mut books = app.cx.store.lock_books(tenant.id).await.unwrap().unwrap();
            books.snapshot().await.unwrap();
            books.commit().await.unwrap();
        }
        let whole =
            list(&app, &tenant, "/v1/ledger?limit=100").await.body["data"].as_array().unwrap().clone();
        let (mut available, mut held, mut charged) = (0, 0, 0);
        for entry in whole.iter().rev() {
            let amount = micros(&entry["amount_usd"]);
            match entry["kind"].as_str().unwrap() {
                "deposit" => {
                    available += amount;
                    assert_eq!((&entry["reference"], &entry["run_id"]), (&json!("first"), &Value::Null));
                }
                "hold" => (available, held) = (available - amount, held + amount),
                "charge" => (held, charged) = (held - amount, charged + amount),
                "release" => (held, available) = (held - amount, available + amount),
                other => panic!("{other}"),
            }
            assert_eq!(micros(&entry["available_usd"]), available, "{entry}");
            assert_eq!(entry["kind"] == "deposit", entry["run_id"].is_null());
        }
        let budget = app.get("/v1/budget", &tenant.key).await.body;
        assert_eq!(
            (available, held, charged),
            (micros(&budget["available_usd"]), micros(&budget["held_usd"]), micros(&budget["charged_usd"]))
        );
        for limit in [1, 2, 3, 5] {
            let pages = all(&app, &tenant, &format!("/v1/ledger?limit={limit}")).await;
            assert_eq!(pages.concat(), whole, "by {limit}");
        }
    }
    let members: BTreeSet<_> = list(&app, &tenant, "/v1/ledger").await.body["data"][0]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    // No count of the platform's among them.
    let expected =
        ["amount_usd", "available_usd", "created_at", "credit", "debit", "kind", "reference", "run_id"];
    assert_eq!(members, expected.map(str::to_owned).into());
    is_problem(&app.get("/v1/ledger?status=hold", &tenant.key).await, 400, "invalid-request");
    app.finish().await;
}

/// On a table without statistics, which a new deployment's is: runs are found by their keys, and only lists
/// use the index of lists.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn look_ups_are_not_planned_onto_the_index_of_lists() {
    const RUNS: u32 = 2_000;
    let app = TestApp::with(&[("DATABASE_CONNECTIONS_MAX", "2")]).await;
    let tenant = app.tenant("1000").await;
    let now = app.cx.store.now().await.unwrap().to_rfc3339();
    Past::decision(0, &now).write_many(&app, &tenant, RUNS).await;
    let statistics = "SELECT count(*) FROM pg_statistic WHERE starelid = 'runs'::regclass";
    assert_eq!(app.place.sql(statistics).await[0][0].as_deref(), Some("0"));
    close_sessions(&app).await;
    let before = scans(&app).await;
    // Often enough for plans that no longer look at the parameters.
    for round in 0..8 {
        let run_id = app.submit(&tenant, &format!("run-{round}"), "1").await;
        app.post(&tenant, &format!("run-{round}"), &decision("1")).await;
        app.run(&tenant, run_id).await;
        app.work().await;
        app.run(&tenant, run_id).await;
        app.cx.store.open_holds(tenant.id).await.unwrap();
        app.pass(dpp::reaper::Pass::Reservations).await;
    }
    close_sessions(&app).await;
    let after = scans(&app).await;
    assert_eq!(after["lists"], before["lists"], "{before:?} {after:?}");
    assert_eq!(after["table"], before["table"], "no scan of the whole table: {before:?} {after:?}");
    assert!(after["keys"] > before["keys"], "{before:?} {after:?}");
    for _ in 0..8 {
        let page = list(&app, &tenant, "/v1/runs?limit=100").await;
        let cursor = page.body["next_cursor"].as_str().unwrap().to_owned();
        list(&app, &tenant, &format!("/v1/runs?limit=100&cursor={cursor}")).await;
    }
    close_sessions(&app).await;
    let listed = scans(&app).await;
    assert_eq!(listed["lists"], after["lists"] + 16, "{listed:?}");
    assert_eq!(listed["table"], after["table"], "{listed:?}");
    assert!(listed["rows"] <= after["rows"] + 16 * 101, "a page reads a page: {listed:?}");
    app.finish().await;
}

/// Runs that did not complete have an index of their own: however many others there are, a page of them reads
/// a page.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_a_rare_status_does_not_read_all_runs() {
    const RUNS: u32 = 2_000;
    let app = TestApp::with(&[("DATABASE_CONNECTIONS_MAX", "2")]).await;
    let tenant = app.tenant("1000").await;
    let now = app.cx.store.now().await.unwrap().to_rfc3339();
    Past::decision(0, &now).write_many(&app, &tenant, RUNS).await;
    for (status, count) in [("EXPIRED", 3), ("CANCELLED", 2)] {
        let some = format!("SELECT run_id FROM runs WHERE status = 'FAILED' LIMIT {count}");
        app.place.sql(&format!("UPDATE runs SET status = '{status}' WHERE run_id IN ({some})")).await;
    }
    close_sessions(&app).await;
    let before = scans(&app).await;
    // Often enough for plans that no longer look at the parameters.
    for _ in 0..8 {
        for (status, count) in [("EXPIRED", 3), ("CANCELLED", 2), ("FAILED", 20)] {
            let page = list(&app, &tenant, &format!("/v1/runs?status={status}")).await.body;
            assert_eq!(page["data"].as_array().unwrap().len(), count);
            assert_eq!(page["next_cursor"].is_string(), status == "FAILED");
        }
    }
    close_sessions(&app).await;
    let after = scans(&app).await;
    assert_eq!(after["table"], before["table"], "{before:?} {after:?}");
    assert!(after["read"] <= before["read"] + 8 * (3 + 2 + 21) + 100, "{before:?} {after:?}");
    app.finish().await;
}

/// Sessions write down what they scanned at their end at the latest.
async fn close_sessions(app: &TestApp) {
    let others = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'dpp'";
    crate::harness::until("the sessions are closed", async || {
        app.place.sql(&format!("SELECT pg_terminate_backend(pid) {others}")).await;
        app.place.sql(&format!("SELECT count(*) {others}")).await[0][0].as_deref() == Some("0")
    })
    .await;
}

async fn scans(app: &TestApp) -> std::collections::BTreeMap<String, u64> {
    let rows = app
        .place
        .sql(
            "SELECT 'lists', sum(idx_scan) FROM pg_stat_user_indexes WHERE indexrelname = 'runs_tenant_id_created_at_run_id_idx'
             UNION ALL SELECT 'rows', sum(idx_tup_fetch) FROM pg_stat_user_indexes
                WHERE indexrelname = 'runs_tenant_id_created_at_run_id_idx'
             UNION ALL SELECT 'read', sum(idx_tup_fetch) FROM pg_stat_user_indexes WHERE relname = 'runs'
             UNION ALL SELECT 'keys', sum(idx_scan) FROM pg_stat_user_indexes
                WHERE indexrelname IN ('runs_pkey', 'runs_tenant_id_idempotency_key_key')
             UNION ALL SELECT 'table', sum(seq_scan) FROM pg_stat_user_tables WHERE relname = 'runs'",
        )
        .await;
    rows.into_iter()
        .map(|row| {
            (row[0].clone().unwrap(), row[1].as_ref().unwrap_or_else(|| panic!("{row:?}")).parse().unwrap())
        })
        .collect()
}
