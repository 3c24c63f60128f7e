//! Amounts, clocks, names and migrations at their edges, through the doors.

use std::time::Duration;

use chrono::TimeDelta;
use dpp::{
    domain::{money::UsdMicros, run::Leased},
    flow::{
        audit,
        crash::{CrashPoint, Fault},
        take,
    },
    reaper::Pass,
};
use futures::future::join_all;
use serde_json::{Value, json};

use crate::harness::{Tenant, TestApp, decision, process::dpp};

/// What the ledger, the gate and the API say can be spent: one figure.
async fn available(app: &TestApp, tenant: &Tenant) -> String {
    let (code, out, err) =
        dpp(&app.place, &["budget", "show", "--tenant", &tenant.id.to_string(), "--json"]).await;
    assert_eq!(code, 0, "{err}");
    let shown: Value = serde_json::from_str(&out).unwrap();
    let budget = app.get("/v1/budget", &tenant.key).await.body;
    assert_eq!(budget["available_usd"], shown["available_usd"]);
    let found = audit::audit(&app.cx, true).await.unwrap().differences;
    assert!(found.is_empty(), "{found:?}");
    shown["available_usd"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_balance_is_exact_from_nothing_to_a_billion() {
    let app = TestApp::start().await;
    // Deposit, cap, and what is left: before the run, while it is open, after it; and of the cap that is then refused.
    let cases = [
        ("0", None, ["0.0000"; 3], "0.0120"),
        ("0.0001", None, ["0.0001"; 3], "0.0120"),
        ("0.0119", None, ["0.0119"; 3], "0.0120"),
        ("0.0120", Some("0.0120"), ["0.0120", "0.0000", "0.0000"], "0.0120"),
        ("1", Some("1"), ["1.0000", "0.0000", "0.9880"], "0.9881"),
        ("9999.9999", Some("9999.9999"), ["9999.9999", "0.0000", "9999.9879"], "9999.9880"),
        ("999999999.9999", Some("10000"), ["999999999.9999", "999989999.9999", "999999999.9879"], ""),
        ("1000000000", Some("0.0121"), ["1000000000.0000", "999999999.9879", "999999999.9880"], ""),
    ];
    for (deposit, cap, [before, open, after], too_much) in cases {
        let tenant = app.tenant(deposit).await;
        assert_eq!(available(&app, &tenant).await, before, "{deposit}");
        if let Some(cap) = cap {
            app.submit(&tenant, "one", cap).await;
            assert_eq!(available(&app, &tenant).await, open, "{deposit}");
            // From the ledger, with a hold open, and without.
            let _: String = app.place.redis(&["FLUSHDB"]).await;
            dpp::flow::rebuild::rebuild(&app.cx, tenant.id).await.unwrap();
            assert_eq!(available(&app, &tenant).await, open, "{deposit}");
            app.work().await;
            assert_eq!(available(&app, &tenant).await, after, "{deposit}");
        }
        dpp::flow::rebuild::rebuild(&app.cx, tenant.id).await.unwrap();
        assert_eq!(available(&app, &tenant).await, after, "{deposit}");
        let gate: String =
            app.place.redis(&["HGET", &format!("dpp:{{{}}}:budget", tenant.id), "available"]).await;
        assert_eq!(gate, after.parse::<UsdMicros>().unwrap().get().to_string());
        if !too_much.is_empty() {
            let refused = app.post(&tenant, "two", &decision(too_much)).await;
            assert_eq!((refused.status, refused.slug()), (422, "budget-exceeded"), "{refused:?}");
            assert_eq!(refused.body["available_usd"], after, "{refused:?}");
        }
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_amount_is_refused_at_every_door_and_changes_nothing() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    let id = tenant.id.to_string();
    let run_id = dpp::domain::id::RunId::new().to_string();
    let everything = "SELECT (SELECT count(*) FROM tenants), (SELECT count(*) FROM runs), (SELECT count(*) FROM ledger_transfers)";
    let before = app.place.sql(everything).await;
    let bad = [
        "NaN",
        "inf",
        "-inf",
        "1e3",
        "1E3",
        "0x1",
        " 1",
        "1 ",
        "+1",
        "-1",
        "-0.0001",
        "１",
        "0.00001",
        "1.00000",
        ".5",
        "5.",
        "1,5",
        "1_000",
        "$1",
        "",
        "1000000000.0001",
        "9223372036854.775808",
        "99999999999999999999",
    ];
    for text in bad {
        let answer = app.post(&tenant, "key", &decision(text)).await;
        assert_eq!((answer.status, answer.slug()), (400, "invalid-amount"), "{text:?}: {answer:?}");
        let error = &answer.body["errors"][0];
        assert_eq!(error["pointer"], "/max_cost_usd");
        assert!(error["detail"].as_str().unwrap().contains("US dollars"), "{text:?}: {answer:?}");
    }
    // A JSON number was a float somewhere before.
    for number in [json!(1), json!(0.5), json!(1e3), json!(-1), json!(true), json!(["1"]), json!({})] {
        let mut body = decision("1");
        body["max_cost_usd"] = number.clone();
        let answer = app.post(&tenant, "key", &body).await;
        assert_eq!((answer.status, answer.slug()), (400, "invalid-amount"), "{number}: {answer:?}");
    }
    let doors = |text: &str| {
        [
            vec![
                "budget".into(),
                "deposit".into(),
                "--tenant".into(),
                id.clone(),
                "--reference".into(),
                "r".into(),
                format!("--amount={text}"),
            ],
            vec!["tenant".into(), "create".into(), "--name".into(), "n".into(), format!("--deposit={text}")],
            vec![
                "run".into(),
                "resolve".into(),
                run_id.clone(),
                "--reason".into(),
                "r".into(),
                format!("--charge={text}"),
            ],
        ]
    };
    for text in bad {
        let refusals = doors(text).map(async |words: Vec<String>| {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let (code, out, err) = dpp(&app.place, &words).await;
            assert_eq!((code, out.as_str()), (2, ""), "{words:?}: {err}");
            assert!(
                err.contains("US dollars") && err.contains(words.last().unwrap().split_once('=').unwrap().0),
                "{words:?}: {err}"
            );
        });
        join_all(refusals).await;
    }
    assert_eq!(app.place.sql(everything).await, before);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deposit_above_the_bound_is_refused_and_changes_nothing() {
    let app = TestApp::start().await;
    let tenant = app.tenant("999999999.9999").await;
    let id = tenant.id.to_string();
    app.submit(&tenant, "one", "10000").await;
    app.work().await;
    let before = app.place.sql("SELECT * FROM ledger_transfers ORDER BY transfer_id").await;
    let epoch = app.cx.store.epoch(tenant.id).await.unwrap();
    for amount in ["0.0002", "1", "1000000000"] {
        let words =
            ["budget", "deposit", "--tenant", &id, "--amount", amount, "--reference", "more", "--json"];
        let (code, out, err) = dpp(&app.place, &words).await;
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        for part in ["$999999999.9999", "$1000000000.0000", "nothing changed"] {
            assert!(err.contains(part), "{part} in {err}");
        }
    }
    assert_eq!(app.place.sql("SELECT * FROM ledger_transfers ORDER BY transfer_id").await, before);
    assert_eq!(app.cx.store.epoch(tenant.id).await.unwrap(), epoch);
    let words = ["budget", "deposit", "--tenant", &id, "--amount", "0.0001", "--reference", "more", "--json"];
    let (code, out, err) = dpp(&app.place, &words).await;
    assert_eq!(code, 0, "{err}");
    let shown: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&shown["deposited_usd"], &shown["available_usd"]),
        (&json!("1000000000.0000"), &json!("999999999.9880"))
    );
    app.finish().await;
}

/// Takes one run as a worker does, and lets that worker be gone.
async fn take_and_die(app: &TestApp) -> Leased {
    let messages = app.cx.queue.receive(1, Duration::ZERO, Duration::ZERO).await.unwrap();
    take::take(&app.cx, messages).await.unwrap().leased.pop().expect("a run was taken").0
}

/// The database's clock is the only one that judges. It jumps back while runs are in every state; nothing is
/// lost or paid twice, new work goes on, and what was waiting ends when the clock has caught up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_back_an_hour_loses_nothing_and_charges_nothing_twice() {
    let app = TestApp::start().await;
    let tenant = app.tenant("10").await;
    let leased = app.submit(&tenant, "leased", "1").await;
    assert_eq!(take_and_die(&app).await.run_id, leased);
    app.cx.crash.arm(CrashPoint::FinishEnd, Fault::DiesBefore);
    let claimed = app.submit(&tenant, "claimed", "1").await;
    app.work().await;
    app.cx.crash.arm(CrashPoint::SubmitSend, Fault::DiesBefore);
    let unsent = app.post(&tenant, "unsent", &decision("1")).await;
    assert!(unsent.status >= 500, "{unsent:?}");
    app.cx.crash.arm(CrashPoint::SubmitInsert, Fault::DiesBefore);
    let orphan = app.post(&tenant, "orphan", &decision("1")).await;
    assert!(orphan.status >= 500, "{orphan:?}");
    let done = app.submit(&tenant, "done", "1").await;
    app.work().await;
    let expected = app.run(&tenant, done).await;

    app.move_clock(TimeDelta::hours(-1));

    for pass in [Pass::Leases, Pass::Claims, Pass::Waiting, Pass::Unsent, Pass::Retention] {
        assert_eq!(app.pass(pass).await.found, 0, "{pass:?}: nothing is due an hour earlier");
    }
    app.reap().await;
    assert_eq!(app.run(&tenant, done).await["actual_cost_usd"], expected["actual_cost_usd"]);
    for (run, status) in [(leased, "PROCESSING"), (claimed, "PROCESSING"), (done, "COMPLETED")] {
        assert_eq!(app.run(&tenant, run).await["status"], status);
    }
    // Life goes on an hour earlier: a submit, its work by a worker that died, another's, a deposit, a replay.
    let early = app.submit(&tenant, "early", "1").await;
    assert_eq!(take_and_die(&app).await.run_id, early);
    app.move_clock(TimeDelta::seconds(4));
    app.reap().await;
    app.work().await;
    let early = app.run(&tenant, early).await;
    assert_eq!((&early["status"], &early["attempts"]), (&json!("COMPLETED"), &json!(2)), "{early}");
    dpp::flow::deposit::deposit(&app.cx, tenant.id, "1".parse().unwrap(), "early").await.unwrap();
    let again = app.post(&tenant, "done", &decision("1")).await;
    assert_eq!((again.status, again.run_id()), (202, done), "{again:?}");
    let found = audit::audit(&app.cx, true).await.unwrap().differences;
    assert!(found.is_empty(), "{found:?}");

    app.move_clock(TimeDelta::hours(1) + TimeDelta::seconds(10));
    app.quiet().await;
    for (key, run) in
        [("leased", Some(leased)), ("claimed", Some(claimed)), ("unsent", None), ("done", Some(done))]
    {
        let answer = app.post(&tenant, key, &decision("1")).await;
        assert!(run.is_none_or(|run| answer.run_id() == run), "{key}: {answer:?}");
        assert_eq!(answer.body["status"], "COMPLETED", "{key}: {answer:?}");
    }
    let budget = app.get("/v1/budget", &tenant.key).await.body;
    // Five runs at $0.0120, the orphan none.
    assert_eq!((&budget["charged_usd"], &budget["held_usd"]), (&json!("0.0600"), &json!("0.0000")));
    app.finish().await;
}

/// Redis' clock judges the age of a reservation. One that was made in its future is young, and nothing more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reservation_from_the_future_of_redis_is_let_go_when_its_clock_has_caught_up() {
    let app = TestApp::start().await;
    let tenant = app.tenant("2").await;
    app.cx.crash.arm(CrashPoint::SubmitInsert, Fault::DiesBefore);
    app.post(&tenant, "orphan", &decision("1")).await;
    let admits = format!("dpp:{{{}}}:admits", tenant.id);
    let admitted: std::collections::HashMap<String, String> = app.place.redis(&["HGETALL", &admits]).await;
    let (run, text) = admitted.into_iter().next().unwrap();
    let (rest, at_ms) = text.rsplit_once(' ').unwrap();
    let an_hour_on = at_ms.parse::<u64>().unwrap() + 3_600_000;
    let _: i64 = app.place.redis(&["HSET", &admits, &run, &format!("{rest} {an_hour_on}")]).await;

    let open = audit::audit(&app.cx, false).await.unwrap().differences;
    assert!(open.is_empty(), "{open:?}");
    app.reap().await;
    let held: usize = app.place.redis(&["HLEN", &admits]).await;
    assert_eq!(held, 1, "it may belong to a submit under way");
    // What is left can be spent, and no more; what the reservation decides is not refused for good.
    app.submit(&tenant, "other", "1").await;
    let undecided = app.post(&tenant, "third", &decision("1")).await;
    assert_eq!(undecided.status, 503, "{undecided:?}");

    let _: i64 = app.place.redis(&["HSET", &admits, &run, &format!("{rest} {at_ms}")]).await;
    app.reap().await;
    app.submit(&tenant, "third", "1").await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenants_name_may_be_anything_and_its_id_is_written_one_way() {
    let app = TestApp::start().await;
    let names =
        ["{acme}", "{}", "a}b{c", "'; DROP TABLE runs; --", "dpp:{x}:budget", "\"q\" \\ %s $1", "名前 🙂"];
    for name in names {
        let (code, out, err) =
            dpp(&app.place, &["tenant", "create", "--name", name, "--deposit", "1", "--json"]).await;
        assert_eq!(code, 0, "{name}: {err}");
        let tenant: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(tenant["name"], name);
        let (code, out, err) = dpp(&app.place, &["key", "create", "--tenant", name, "--json"]).await;
        assert_eq!(code, 0, "{name}: {err}");
        let key: Value = serde_json::from_str(&out).unwrap();
        let id = tenant["tenant_id"].as_str().unwrap();
        assert_eq!(key["tenant_id"], id);
        let tenant = Tenant { id: id.parse().unwrap(), key: key["key"].as_str().unwrap().to_owned() };
        app.submit(&tenant, "{k}", "1").await;
        let keys: Vec<String> = app.place.redis(&["KEYS", &format!("*{id}*")]).await;
        assert!(keys.iter().all(|key| key.starts_with(&format!("dpp:{{{id}}}:"))), "{keys:?}");
        for wrong in [format!("{{{id}}}"), format!("urn:uuid:{id}"), id.replace('-', ""), format!("{id}}}")] {
            let (code, out, err) = dpp(&app.place, &["budget", "show", "--tenant", &wrong]).await;
            assert!(
                code == 1 && out.is_empty() && err.contains("dpp tenant list"),
                "{wrong}: {code} {out} {err}"
            );
            assert_eq!(app.get(&format!("/v1/runs/%7B{wrong}%7D"), &tenant.key).await.status, 404);
        }
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrations_that_race_on_an_empty_database_make_one_schema() {
    let app = TestApp::start().await;
    let mut empty = app.place.clone();
    let name =
        format!("{}_empty", app.place.sql("SELECT current_database()").await[0][0].as_deref().unwrap());
    app.place.sql(&format!("CREATE DATABASE {name} TEMPLATE template0")).await;
    let (server, _) = app.place.database_url.rsplit_once('/').unwrap();
    empty.database_url = format!("{server}/{name}?sslmode=disable");
    empty.process_environment.insert("DATABASE_URL".to_owned(), empty.database_url.clone());
    assert_eq!(dpp(&empty, &["migrate", "--check"]).await.0, 1, "it is empty");

    let racers = join_all((0..4).map(|_| dpp(&empty, &["migrate", "--json"]))).await;

    let mut applied = Vec::new();
    for (code, out, err) in racers {
        assert_eq!(code, 0, "{err}");
        let document: Value = serde_json::from_str(&out).unwrap();
        applied.extend(document["applied"].as_array().unwrap().clone());
    }
    let migrations = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations")).unwrap();
    let migrations = migrations.flatten().filter(|entry| entry.path().is_dir()).count();
    assert_eq!(applied.len(), migrations, "each once: {applied:?}");
    let (code, out, err) = dpp(&empty, &["migrate", "--check"]).await;
    assert_eq!(code, 0, "{out} {err}");
    app.finish().await;
}
