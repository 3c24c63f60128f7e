//! The admin API: what a billing system does, who may not, and that the command line says the same.

use std::time::{Duration, Instant};

use dpp::{
    config::Settings,
    flow::crash::{CrashPoint, Fault},
};
use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use super::{edge::send, is_problem};
use crate::harness::{
    Answer, Tenant, TestApp, decision,
    process::{Process, dpp},
    until,
};

const TOKEN: &str = "0123456789abcdef-an-operators-token";

pub async fn start() -> TestApp {
    TestApp::with(&[("DPP_ADMIN_TOKEN", TOKEN)]).await
}

async fn ask(app: &TestApp, method: &str, path: &str, key: Option<&str>, body: &Value) -> Answer {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let mut request = app.request(method, &format!("/v1/admin{path}")).bearer_auth(TOKEN);
    if let Some(key) = key {
        request = request.header("Idempotency-Key", key);
    }
    if !body.is_null() {
        request = request.header("Content-Type", "application/json").body(body.to_string());
    }
    let answer = app.send(request).await;
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{answer:?}");
    answer
}

async fn get(app: &TestApp, path: &str) -> Answer {
    ask(app, "GET", path, None, &Value::Null).await
}

/// A tenant made over the API, with a key.
async fn make(app: &TestApp, name: &str, plan: &str) -> Tenant {
    let made = ask(app, "POST", "/tenants", Some(name), &json!({"name": name, "plan": plan})).await;
    assert_eq!(made.status, 201, "{made:?}");
    let id = made.body["tenant_id"].as_str().unwrap();
    let key = ask(app, "POST", &format!("/tenants/{id}/keys"), None, &Value::Null).await;
    assert_eq!(key.status, 201, "{key:?}");
    Tenant { id: id.parse().unwrap(), key: key.body["key"].as_str().unwrap().to_owned() }
}

async fn deposit(app: &TestApp, tenant: &Tenant, reference: &str, amount: &str) -> Answer {
    let path = format!("/tenants/{}/deposits", tenant.id);
    ask(app, "POST", &path, Some(reference), &json!({"amount_usd": amount})).await
}

/// Waits until something is so, within what a change may take to be in force on every replica.
async fn within_5_s(what: &str, condition: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    until(what, condition).await;
    assert!(started.elapsed() < Duration::from_secs(5), "{what}: {:?}", started.elapsed());
}

/// An answer without what is each request's own.
fn bare(answer: &Answer) -> (u16, Value, Vec<(String, String)>) {
    let mut body = answer.body.clone();
    // Of HEAD there is none.
    for member in ["trace_id", "instance"].into_iter().filter(|_| answer.body.is_object()) {
        body[member] = Value::Null;
    }
    let headers = answer.headers.iter().map(|(name, value)| (name.to_string(), format!("{value:?}")));
    let own = ["traceparent", "x-request-id", "date", "content-length"];
    let mut headers: Vec<_> = headers.filter(|(name, _)| !own.contains(&name.as_str())).collect();
    headers.sort();
    (answer.status, body, headers)
}

/// Every path of the admin API, as `routes.rs` has them.
pub fn paths() -> Vec<String> {
    let routes = include_str!("../../../src/api/routes.rs");
    let admin = routes.split("pub(super) fn admin").nth(1).unwrap();
    let paths = admin.split("\"/v1/admin").skip(1);
    let paths: Vec<_> = paths.map(|rest| format!("/v1/admin{}", rest.split_once('"').unwrap().0)).collect();
    assert!(paths.len() >= 11, "{paths:?}");
    paths
}

/// The same, with their parameters filled in.
fn filled_paths(id: &str) -> Vec<String> {
    let filled =
        |path: String| path.replace("{tenant_id}", id).replace("{key_id}", id).replace("{plan}", "growth");
    paths().into_iter().map(filled).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_billing_system_drives_a_tenant_from_its_making_to_its_bill() {
    let app = start().await;
    let body = json!({"name": "Acme, Inc.", "plan": "growth"});
    let made = ask(&app, "POST", "/tenants", Some("customer-7"), &body).await;
    assert_eq!((made.status, made.header("idempotent-replayed")), (201, None), "{made:?}");
    let id = made.body["tenant_id"].as_str().unwrap().to_owned();
    assert_eq!(made.header("location"), Some(format!("/v1/admin/tenants/{id}").as_str()));
    for (member, value) in [("name", "Acme, Inc."), ("plan", "growth"), ("status", "ACTIVE")] {
        assert_eq!(made.body[member], value);
    }
    assert!(made.body["created_at"].is_string());

    // A retry is the same tenant, also with the plan that is the default spelt out; another request is none.
    let again = ask(&app, "POST", "/tenants", Some("\"customer-7\""), &body).await;
    assert_eq!((again.status, again.header("idempotent-replayed")), (201, Some("true")));
    assert_eq!(again.body, made.body);
    let plain = ask(&app, "POST", "/tenants", Some("customer-8"), &json!({"name": "B"})).await;
    let spelt = json!({"plan": "starter", "name": "B"});
    let spelt = ask(&app, "POST", "/tenants", Some("customer-8"), &spelt).await;
    assert_eq!(
        (&spelt.body, &plain.body["plan"], spelt.header("idempotent-replayed")),
        (&plain.body, &json!("starter"), Some("true"))
    );
    let other = ask(&app, "POST", "/tenants", Some("customer-7"), &json!({"name": "Other"})).await;
    is_problem(&other, 409, "idempotency-key-reused");
    // Many at once make one.
    let body = json!({"name": "C"});
    let racers = join_all((0..8).map(|_| ask(&app, "POST", "/tenants", Some("customer-9"), &body))).await;
    assert_eq!(racers.iter().filter(|answer| answer.header("idempotent-replayed").is_none()).count(), 1);
    assert!(racers.iter().all(|answer| answer.status == 201 && answer.body == racers[0].body), "{racers:?}");
    assert_eq!(app.place.sql("SELECT 1 FROM tenants").await.len(), 3);

    // Deposits: once for each reference, of one amount.
    let key = ask(&app, "POST", &format!("/tenants/{id}/keys"), None, &json!({"label": "first"})).await;
    let tenant = Tenant { id: id.parse().unwrap(), key: key.body["key"].as_str().unwrap().to_owned() };
    let first = deposit(&app, &tenant, "pay_1", "12.5").await;
    assert_eq!((first.status, first.header("idempotent-replayed")), (201, None), "{first:?}");
    assert_eq!((&first.body["amount_usd"], &first.body["reference"]), (&json!("12.5000"), &json!("pay_1")));
    for amount in ["12.5", "12.5000"] {
        let again = deposit(&app, &tenant, "pay_1", amount).await;
        assert_eq!((again.status, again.header("idempotent-replayed")), (201, Some("true")));
        assert_eq!(again.body, first.body);
    }
    let reused = deposit(&app, &tenant, "pay_1", "12.5001").await;
    is_problem(&reused, 409, "idempotency-key-reused");
    assert!(reused.body["detail"].as_str().unwrap().contains("12.5000"), "{reused:?}");
    let racers = join_all((0..6).map(|_| deposit(&app, &tenant, "pay_2", "1"))).await;
    assert_eq!(racers.iter().filter(|answer| answer.header("idempotent-replayed").is_none()).count(), 1);

    // The tenant buys, and its account says what it has.
    app.submit(&tenant, "one", "0.5").await;
    let seen = get(&app, &format!("/tenants/{id}")).await;
    assert_eq!(seen.status, 200);
    for (member, value) in [
        ("tenant_id", id.as_str()),
        ("plan", "growth"),
        ("status", "ACTIVE"),
        ("deposited_usd", "13.5000"),
        ("available_usd", "13.0000"),
        ("held_usd", "0.5000"),
        ("charged_usd", "0.0000"),
    ] {
        assert_eq!(seen.body[member], value, "{member} in {seen:?}");
    }
    let ledger = app.get("/v1/ledger", &tenant.key).await.body;
    let references: Vec<_> =
        ledger["data"].as_array().unwrap().iter().filter_map(|entry| entry["reference"].as_str()).collect();
    assert_eq!(references, ["pay_2", "pay_1"]);

    // All tenants, page by page, the newest first.
    let (mut names, mut path) = (Vec::new(), "/tenants?limit=1".to_owned());
    loop {
        let page = get(&app, &path).await;
        assert_eq!((page.status, page.body["data"].as_array().unwrap().len()), (200, 1), "{page:?}");
        names.push(page.body["data"][0]["name"].as_str().unwrap().to_owned());
        assert_eq!(page.header("link").is_some(), page.body["next_cursor"].is_string());
        let Some(cursor) = page.body["next_cursor"].as_str() else { break };
        path = format!("/tenants?limit=1&cursor={cursor}");
        // A cursor belongs to its list.
        let elsewhere = get(&app, &format!("/tenants/{id}/keys?cursor={cursor}")).await;
        is_problem(&elsewhere, 400, "invalid-cursor");
        is_problem(&app.get(&format!("/v1/keys?cursor={cursor}"), &tenant.key).await, 400, "invalid-cursor");
    }
    assert_eq!(names, ["C", "B", "Acme, Inc."]);
    is_problem(&get(&app, "/tenants?name=C").await, 400, "invalid-request");
    app.finish().await;
}

/// Whatever becomes of a request or of its answer: its repetition tells, and is done once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deposit_or_a_tenant_whose_answer_was_lost_is_asked_for_again_and_made_once() {
    let app = start().await;
    let tenant = make(&app, "acme", "growth").await;
    for point in [CrashPoint::DepositPost, CrashPoint::DepositCommit] {
        for fault in Fault::ALL {
            let reference = format!("{point:?}-{fault:?}");
            app.cx.crash.arm(point, fault);
            let lost = deposit(&app, &tenant, &reference, "1").await;
            assert!([500, 503].contains(&lost.status), "{reference}: {lost:?}");
            if lost.status == 503 {
                assert!(lost.header("retry-after").is_some());
                assert!(lost.body["detail"].as_str().unwrap().contains("not known"), "{lost:?}");
            }
            let posted =
                point == CrashPoint::DepositCommit && [Fault::DiesAfter, Fault::AnswerLost].contains(&fault);
            let again = deposit(&app, &tenant, &reference, "1").await;
            assert_eq!((again.status, again.body["amount_usd"].as_str()), (201, Some("1.0000")), "{again:?}");
            assert_eq!(again.header("idempotent-replayed").is_some(), posted, "{reference}: {again:?}");
        }
    }
    let account = get(&app, &format!("/tenants/{}", tenant.id)).await.body;
    assert_eq!(account["deposited_usd"], "8.0000");
    app.submit(&tenant, "one", "8").await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_changes_is_in_force_on_every_replica_within_5_s() {
    let app = start().await;
    let replica = TestApp::on(app.place.clone(), &[]);
    let tenant = make(&app, "acme", "growth").await;
    deposit(&app, &tenant, "first", "10").await;
    let path = format!("/tenants/{}", tenant.id);
    let limits = async |app: &TestApp| app.get("/v1/budget", &tenant.key).await.body["plan"].clone();
    // Both remember the caller.
    for app in [&app, &replica] {
        assert_eq!(limits(app).await["plan"], "growth");
    }

    // Twice, as a program that lost the answer would.
    for _ in 0..2 {
        let suspended = ask(&app, "POST", &format!("{path}/suspend"), None, &Value::Null).await;
        assert_eq!((suspended.status, &suspended.body["status"]), (200, &json!("SUSPENDED")));
    }
    for app in [&app, &replica] {
        is_problem(&app.post(&tenant, "one", &decision("0.5")).await, 403, "tenant-suspended");
        assert_eq!(app.get("/v1/runs", &tenant.key).await.status, 200, "it may still look");
    }
    for _ in 0..2 {
        let resumed = ask(&app, "POST", &format!("{path}/resume"), None, &Value::Null).await;
        assert_eq!((resumed.status, &resumed.body["status"]), (200, &json!("ACTIVE")));
    }
    for app in [&app, &replica] {
        within_5_s("it may buy again", async || {
            app.post(&tenant, "one", &decision("0.5")).await.status == 202
        })
        .await;
    }

    for _ in 0..2 {
        let moved = ask(&app, "PUT", &format!("{path}/plan"), None, &json!({"plan": "sandbox"})).await;
        assert_eq!((moved.status, &moved.body["plan"]), (200, &json!("sandbox")));
    }
    let history = app.place.sql("SELECT plan FROM tenant_plans ORDER BY assigned_at").await;
    assert_eq!(history.len(), 2, "the second time changed nothing: {history:?}");
    for app in [&app, &replica] {
        within_5_s("the plan is known", async || limits(app).await["plan"] == "sandbox").await;
        is_problem(&app.post(&tenant, "two", &decision("1.0001")).await, 422, "max-cost-exceeds-plan");
    }
    // Operators that put it on plans at once leave it on one of them.
    let put = async |plan: &str| {
        ask(&app, "PUT", &format!("{path}/plan"), None, &json!({"plan": plan})).await.status
    };
    let racers = join_all(["growth", "starter", "enterprise", "sandbox"].map(put)).await;
    assert!(racers.iter().all(|status| [200, 503].contains(status)), "{racers:?}");
    let active = app.place.sql("SELECT plan FROM tenant_plans WHERE ended_at IS NULL").await;
    assert_eq!(active.len(), 1, "{active:?}");
    replica.abandon();
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_makes_limits_rotates_and_revokes_keys() {
    let app = start().await;
    let (tenant, other) = (make(&app, "acme", "growth").await, make(&app, "other", "growth").await);
    let path = format!("/tenants/{}/keys", tenant.id);
    let body = json!({"label": "reader", "scopes": ["runs:read"], "expires_at": "2100-01-01T00:00:00Z"});
    let limited = ask(&app, "POST", &path, None, &body).await;
    assert_eq!(limited.status, 201, "{limited:?}");
    for member in ["label", "scopes"] {
        assert_eq!(limited.body[member], body[member]);
    }
    assert_eq!(limited.body["expires_at"], "2100-01-01T00:00:00Z");
    let key = |answer: &Answer| answer.body["key"].as_str().unwrap().to_owned();
    is_problem(&app.get("/v1/budget", &key(&limited)).await, 403, "insufficient-scope");
    assert_eq!(app.get("/v1/runs", &key(&limited)).await.status, 200);

    let keys = get(&app, &path).await;
    assert_eq!(keys.body["data"].as_array().unwrap().len(), 2);
    assert!(!keys.body.to_string().contains(&key(&limited)));
    let page = get(&app, &format!("{path}?limit=1")).await.body;
    let cursor = page["next_cursor"].as_str().unwrap();
    let others = format!("/tenants/{}/keys?cursor={cursor}", other.id);
    is_problem(&get(&app, &others).await, 400, "invalid-cursor");
    assert_eq!(get(&app, &format!("{path}?cursor={cursor}")).await.body["data"][0], keys.body["data"][1]);

    let id = limited.body["key_id"].as_str().unwrap();
    let rotate = format!("/keys/{id}/rotate");
    let successor = ask(&app, "POST", &rotate, None, &json!({"grace_sec": 0})).await;
    assert_eq!((successor.status, &successor.body["scopes"]), (201, &body["scopes"]), "{successor:?}");
    is_problem(&ask(&app, "POST", &rotate, None, &Value::Null).await, 404, "not-found");
    let gone = async |key: &str| app.get("/v1/runs", key).await.status == 401;
    within_5_s("its grace is over", async || gone(&key(&limited)).await).await;
    let id = successor.body["key_id"].as_str().unwrap();
    for _ in 0..2 {
        assert_eq!(ask(&app, "DELETE", &format!("/keys/{id}"), None, &Value::Null).await.status, 204);
    }
    within_5_s("it is revoked", async || gone(&key(&successor)).await).await;

    for (body, pointer) in [
        (json!({"label": "x".repeat(201)}), "/label"),
        (json!({"scopes": ["all"]}), "/scopes"),
        (json!({"expires_at": "2001-01-01T00:00:00Z"}), "/expires_at"),
        (json!({"tenant_id": other.id}), "/tenant_id"),
    ] {
        let answer = ask(&app, "POST", &path, None, &body).await;
        is_problem(&answer, 400, "invalid-request");
        assert_eq!(answer.body["errors"][0]["pointer"], pointer, "{answer:?}");
    }
    let grace =
        ask(&app, "POST", &format!("/keys/{id}/rotate"), None, &json!({"grace_sec": 2_592_001})).await;
    is_problem(&grace, 400, "invalid-request");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_is_made_edited_and_held_to_by_run_and_by_pack() {
    let app = start().await;
    let all = get(&app, "/plans").await.body;
    let names: Vec<_> = all["data"].as_array().unwrap().iter().map(|plan| plan["plan"].clone()).collect();
    assert_eq!(names, ["enterprise", "growth", "sandbox", "starter"]);
    // What GET shows, PUT takes, and changes nothing.
    for plan in all["data"].as_array().unwrap() {
        let path = format!("/plans/{}", plan["plan"].as_str().unwrap());
        let put = ask(&app, "PUT", &path, None, plan).await;
        assert_eq!((put.status, &put.body), (200, plan));
    }
    assert_eq!(get(&app, "/plans").await.body, all);
    is_problem(&get(&app, "/plans/agency").await, 404, "not-found");
    is_problem(&get(&app, "/plans/a%00b").await, 404, "not-found");

    let mut plan = json!({
        "allowed_packs": ["url", "decision", "url"],
        "run_cost_max_usd": "5",
        "pack_cost_max_usd": {"decision": "0.5", "url": "0"},
        "runs_per_minute": 0,
        "polls_per_minute": null,
        "concurrent_runs_max": 3,
        "monthly_spend_max_usd": "0",
        "timebox_secs_max": 60,
        "retention_days": 7,
    });
    let made = ask(&app, "PUT", "/plans/agency", None, &plan).await;
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(
        made.body,
        json!({
            "plan": "agency",
            "allowed_packs": ["decision", "url"],
            "run_cost_max_usd": "5.0000",
            "pack_cost_max_usd": {"decision": "0.5000"},
            "runs_per_minute": null,
            "polls_per_minute": null,
            "concurrent_runs_max": 3,
            "monthly_spend_max_usd": null,
            "timebox_secs_max": 60,
            "retention_days": 7,
        })
    );
    assert_eq!(get(&app, "/plans/agency").await.body, made.body);

    // A run of a pack keeps to the pack's limit, of another to the plan's.
    let tenant = make(&app, "acme", "agency").await;
    deposit(&app, &tenant, "first", "10").await;
    let above = app.post(&tenant, "one", &decision("0.5001")).await;
    is_problem(&above, 422, "max-cost-exceeds-plan");
    assert!(above.body["detail"].as_str().unwrap().contains("$0.5000"), "{above:?}");
    app.submit(&tenant, "one", "0.5").await;
    let url = |max_cost: &str| json!({"pack_type": "url", "max_cost_usd": max_cost, "inputs": {"url": "http://127.0.0.1:1/"}});
    assert_eq!(app.post(&tenant, "two", &url("5")).await.status, 202);
    is_problem(&app.post(&tenant, "three", &url("5.0001")).await, 422, "max-cost-exceeds-plan");
    let shown = app.get("/v1/budget", &tenant.key).await.body["plan"].clone();
    assert_eq!(shown, made.body);
    // An edit reaches tenants that are on the plan already.
    plan["pack_cost_max_usd"] = json!({});
    plan["allowed_packs"] = json!(["decision"]);
    assert_eq!(ask(&app, "PUT", "/plans/agency", None, &plan).await.status, 200);
    within_5_s("the pack's limit is gone", async || {
        app.post(&tenant, "four", &decision("1")).await.status == 202
    })
    .await;
    is_problem(&app.post(&tenant, "five", &url("1")).await, 403, "pack-not-allowed");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_that_cannot_be_is_refused_with_every_wrong_field() {
    let app = start().await;
    let good = get(&app, "/plans/growth").await.body;
    let pointers = |answer: &Answer| {
        let errors = answer.body["errors"].as_array().unwrap();
        errors.iter().map(|error| error["pointer"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for (member, values) in [
        ("allowed_packs", vec![json!([]), json!(["decison"]), json!("decision"), json!([1])]),
        (
            "run_cost_max_usd",
            vec![json!("0.0049"), json!("10000.0001"), json!("-1"), json!(5), json!("1.00001")],
        ),
        (
            "runs_per_minute",
            vec![json!(-1), json!(1.5), json!(2_147_483_648_u64), json!("5"), json!(u64::MAX)],
        ),
        ("polls_per_minute", vec![json!(-1)]),
        ("concurrent_runs_max", vec![json!(-1), json!(true)]),
        ("monthly_spend_max_usd", vec![json!("1000000000.0001"), json!("x")]),
        ("timebox_secs_max", vec![json!(0), json!(86_401), Value::Null]),
        ("retention_days", vec![json!(0), json!(3_661)]),
        ("pack_cost_max_usd", vec![json!([]), json!({"decision": 5}), Value::Null]),
        ("plan", vec![json!("starter")]),
        ("surprise", vec![json!(1)]),
    ] {
        for value in values {
            let mut plan = good.clone();
            plan[member] = value;
            let answer = ask(&app, "PUT", "/plans/growth", None, &plan).await;
            is_problem(&answer, 400, "invalid-request");
            assert_eq!(pointers(&answer), [format!("/{member}")], "{plan}: {answer:?}");
        }
    }
    let mut plan = good.clone();
    plan["pack_cost_max_usd"] = json!({"a/b": "1", "decision": "0.0049", "url": "10000.0001"});
    plan["timebox_secs_max"] = json!(0);
    let answer = ask(&app, "PUT", "/plans/growth", None, &plan).await;
    assert_eq!(
        pointers(&answer),
        [
            "/pack_cost_max_usd/a~1b",
            "/pack_cost_max_usd/decision",
            "/pack_cost_max_usd/url",
            "/timebox_secs_max"
        ],
        "{answer:?}"
    );
    // Nothing is without limit because it was left out.
    let missing = ask(&app, "PUT", "/plans/growth", None, &json!({})).await;
    is_problem(&missing, 400, "invalid-request");
    assert_eq!(pointers(&missing).len(), 9, "{missing:?}");
    for name in ["a%2Fb", "a%00b", "%20", &"x".repeat(65)] {
        let mut plan = good.clone();
        plan.as_object_mut().unwrap().remove("plan");
        let answer = ask(&app, "PUT", &format!("/plans/{name}"), None, &plan).await;
        is_problem(&answer, 400, "invalid-request");
        assert_eq!(pointers(&answer), ["/plan"], "{name}");
    }
    assert_eq!(get(&app, "/plans/growth").await.body, good, "nothing changed");
    // The schema refuses what came in by another way.
    for caps in [
        "[]",
        "5",
        "{\"url\": \"1\"}",
        "{\"url\": [5000]}",
        "{\"url\": 4999}",
        "{\"url\": 5001}",
        "{\"url\": null}",
    ] {
        let set = format!("UPDATE plans SET pack_cost_max_usd_micros = '{caps}' WHERE plan = 'growth'");
        let refused = "RAISE EXCEPTION 'it was accepted'; EXCEPTION WHEN check_violation THEN NULL";
        app.place.sql(&format!("DO $$ BEGIN {set}; {refused}; END $$")).await;
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_billing_system_gets_wrong_is_named_and_changes_nothing() {
    let app = start().await;
    let tenant = make(&app, "acme", "starter").await;
    let nobody = "0194f1a0-0000-7000-8000-000000000000";
    for (body, pointer) in [
        (json!({}), "/name"),
        (json!({"name": 5}), "/name"),
        (json!({"name": " \t"}), "/name"),
        (json!({"name": "ü".repeat(201)}), "/name"),
        (json!({"name": "a\u{0}b"}), "/name"),
        (json!({"name": "a", "plan": "gold"}), "/plan"),
        (json!({"name": "a", "plan": "go\u{0}ld"}), "/plan"),
        (json!({"name": "a", "plan": null}), "/plan"),
        (json!({"name": "a", "deposit_usd": "1"}), "/deposit_usd"),
    ] {
        let answer = ask(&app, "POST", "/tenants", Some("k"), &body).await;
        is_problem(&answer, 400, "invalid-request");
        assert_eq!(answer.body["errors"][0]["pointer"], pointer, "{answer:?}");
    }
    // A request that was refused has not used its key.
    assert_eq!(ask(&app, "POST", "/tenants", Some("k"), &json!({"name": "a"})).await.status, 201);
    is_problem(
        &ask(&app, "POST", "/tenants", None, &json!({"name": "a"})).await,
        400,
        "idempotency-key-required",
    );
    is_problem(
        &ask(&app, "POST", "/tenants", Some("a b"), &json!({"name": "a"})).await,
        400,
        "idempotency-key-invalid",
    );

    for amount in [
        json!("0"),
        json!("0.0000"),
        json!("-1"),
        json!("1.00001"),
        json!("1000000000.0001"),
        json!(5),
        json!("1e3"),
        json!(""),
        Value::Null,
    ] {
        let path = format!("/tenants/{}/deposits", tenant.id);
        let answer = ask(&app, "POST", &path, Some("r"), &json!({"amount_usd": amount})).await;
        is_problem(&answer, 400, "invalid-amount");
        assert_eq!(answer.body["errors"][0]["pointer"], "/amount_usd", "{answer:?}");
    }
    let path = format!("/tenants/{}/deposits", tenant.id);
    is_problem(&ask(&app, "POST", &path, Some("r"), &json!({})).await, 400, "invalid-amount");
    is_problem(
        &ask(&app, "POST", &path, None, &json!({"amount_usd": "1"})).await,
        400,
        "idempotency-key-required",
    );
    let more = ask(&app, "POST", &path, Some("r"), &json!({"amount_usd": "1", "reference": "x"})).await;
    is_problem(&more, 400, "invalid-request");
    assert_eq!(deposit(&app, &tenant, "big", "999999999.9999").await.status, 201);
    is_problem(&deposit(&app, &tenant, "r", "0.0002").await, 400, "invalid-amount");
    assert_eq!(deposit(&app, &tenant, "r", "0.0001").await.status, 201, "up to the most that books hold");

    // What is not there, and what is no id.
    for id in [nobody, "none", "0194F1A0000070008000000000000000", "%7B%7D"] {
        for (method, tail, body) in [
            ("GET", "", Value::Null),
            ("POST", "/suspend", Value::Null),
            ("POST", "/resume", Value::Null),
            ("PUT", "/plan", json!({"plan": "growth"})),
            ("POST", "/deposits", json!({"amount_usd": "1"})),
            ("GET", "/keys", Value::Null),
            ("POST", "/keys", json!({})),
        ] {
            let answer = ask(&app, method, &format!("/tenants/{id}{tail}"), Some("x"), &body).await;
            is_problem(&answer, 404, "not-found");
        }
        is_problem(&ask(&app, "DELETE", &format!("/keys/{id}"), None, &Value::Null).await, 404, "not-found");
        is_problem(
            &ask(&app, "POST", &format!("/keys/{id}/rotate"), None, &Value::Null).await,
            404,
            "not-found",
        );
    }
    let moved =
        ask(&app, "PUT", &format!("/tenants/{}/plan", tenant.id), None, &json!({"plan": "gold"})).await;
    is_problem(&moved, 400, "invalid-request");
    assert!(moved.body["detail"].as_str().unwrap().contains("/v1/admin/plans"), "{moved:?}");
    is_problem(
        &send(&app, "POST", "/v1/admin/tenants", Some(TOKEN), &[("Idempotency-Key", "z")]).await,
        415,
        "unsupported-media-type",
    );

    // The command line refuses the same in the same words.
    let said = |answer: &Answer| answer.body["errors"][0]["detail"].as_str().unwrap().to_owned();
    let id = tenant.id.to_string();
    let same: [(&[&str], String); 4] = [
        (
            &["tenant", "create", "--name", " "],
            said(&ask(&app, "POST", "/tenants", Some("s"), &json!({"name": " "})).await),
        ),
        (
            &["budget", "deposit", "--tenant", &id, "--amount", "0", "--reference", "s"],
            said(&deposit(&app, &tenant, "s", "0").await),
        ),
        (
            &["budget", "deposit", "--tenant", &id, "--amount", "1", "--reference", "s"],
            said(&deposit(&app, &tenant, "s", "1").await),
        ),
        (
            &["key", "create", "--tenant", &id, "--label", &"x".repeat(201)],
            said(
                &ask(&app, "POST", &format!("/tenants/{id}/keys"), None, &json!({"label": "x".repeat(201)}))
                    .await,
            ),
        ),
    ];
    for (words, said) in same {
        let (code, out, err) = dpp(&app.place, words).await;
        assert!(code > 0 && out.is_empty() && err.contains(&said), "{words:?}: {code} {said:?} {err}");
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_token_the_admin_api_is_shut_and_without_any_it_is_not_there() {
    let app = start().await;
    let tenant = app.tenant("1").await;
    let id = tenant.id.to_string();
    let usual = app.send(app.request(Method::GET, "/v1/budget")).await;
    is_problem(&usual, 401, "unauthorized");
    let (_, refused, headers) = bare(&usual);
    let wrong = [
        String::new(),
        format!("Bearer {}", tenant.key),
        format!("Bearer {}", &TOKEN[1..]),
        format!("Bearer {TOKEN}x"),
        format!("Bearer {}", TOKEN.to_uppercase()),
        format!("Basic {TOKEN}"),
        TOKEN.to_owned(),
        format!("Bearer {TOKEN} {TOKEN}"),
        "Bearer ".to_owned(),
    ];
    let mut asked = 0;
    for path in filled_paths(&id) {
        let options = send(&app, "OPTIONS", &path, None, &[]).await;
        let methods = options.header("allow").unwrap().to_owned();
        assert_eq!(options.status, 204);
        for method in methods.split(", ").filter(|method| *method != "OPTIONS") {
            for authorization in &wrong {
                let headers_sent: Vec<_> = [("Authorization", authorization.as_str())]
                    .into_iter()
                    .filter(|(_, value)| !value.is_empty())
                    .collect();
                let answer = send(&app, method, &path, None, &headers_sent).await;
                let (status, body, seen) = bare(&answer);
                assert_eq!(status, 401, "{method} {path} with {authorization:?}");
                if method != "HEAD" {
                    assert_eq!((&body, &seen), (&refused, &headers), "{method} {path}");
                }
                asked += 1;
            }
            // A body is read by nobody before that.
            let long =
                app.request(Method::from_bytes(method.as_bytes()).unwrap(), &path).body("{".repeat(1_000));
            assert_eq!(app.send(long).await.status, 401);
        }
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            if !methods.contains(method) {
                is_problem(&send(&app, method, &path, None, &[]).await, 405, "method-not-allowed");
            }
        }
    }
    assert!(asked >= 100);
    // And the reverse: the admin token is no tenant's key.
    is_problem(&app.get("/v1/budget", TOKEN).await, 401, "unauthorized");
    // Any spelling of the scheme will do, as everywhere.
    let lower = [("Authorization", &*format!("bearer {TOKEN}"))];
    assert_eq!(send(&app, "GET", "/v1/admin/plans", None, &lower).await.status, 200);
    assert_eq!(app.get("/v1/budget", &tenant.key).await.status, 200, "nothing was done");
    app.finish().await;

    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    let origin = ("Origin", "http://localhost:3000");
    for path in filled_paths(&tenant.id.to_string()) {
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let unknown = send(&app, method, "/v1/nowhere", Some(TOKEN), &[origin]).await;
            let answer = send(&app, method, &path, Some(TOKEN), &[origin]).await;
            assert_eq!(bare(&answer), bare(&unknown), "{method} {path}");
            assert_eq!(answer.status, 404);
        }
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_browsers_are_told_nothing_of_the_admin_api() {
    let app =
        TestApp::with(&[("DPP_ADMIN_TOKEN", TOKEN), ("CORS_ALLOWED_ORIGINS", "https://app.example.com")])
            .await;
    let headers = [("Origin", "https://app.example.com"), ("Access-Control-Request-Method", "POST")];
    for (method, key) in [("OPTIONS", None), ("GET", Some(TOKEN)), ("GET", None)] {
        let answer = send(&app, method, "/v1/admin/tenants", key, &headers).await;
        assert_eq!(answer.header("access-control-allow-origin"), None, "{answer:?}");
    }
    let tenants = send(&app, "OPTIONS", "/v1/runs", None, &headers).await;
    assert!(tenants.header("access-control-allow-origin").is_some());
    app.finish().await;
}

#[test]
fn a_token_that_could_be_guessed_stops_the_start() {
    let with = |token: &str| {
        let environment = [("DPP_ADMIN_TOKEN".to_owned(), token.to_owned())];
        Settings::resolve(&environment.into()).map(|settings| settings.admin_token().is_some())
    };
    let key = dpp::domain::api_key::ApiKey::generate();
    for wrong in [
        "short",
        &"x".repeat(31),
        &format!("{} {}", "x".repeat(20), "y".repeat(20)),
        &"ü".repeat(40),
        key.reveal(),
    ] {
        let error = with(wrong).map(drop).unwrap_err().to_string();
        assert!(error.contains("DPP_ADMIN_TOKEN") && error.contains("at least 32"), "{error}");
        assert!(!error.contains(wrong), "a secret is never printed: {error}");
    }
    assert!(with(&"x".repeat(32)).unwrap());
    assert!(!with("").unwrap(), "unset");
}

/// Over the API and from a shell, each change once, with who and what, and no secret.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_change_is_logged_once_with_who_and_what() {
    let app = TestApp::start().await;
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("serve.log");
    let port = dpp::local::child::free_port().unwrap();
    let more =
        [("DPP_ADMIN_TOKEN", TOKEN), ("DPP_PORT", &*port.to_string()), ("DPP_OPS_ADDR", "127.0.0.1:0")];
    let server = Process::logging(&app.place, &["serve"], &more, &log);
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://127.0.0.1:{port}/v1/admin");
    until("it serves", async || http.get(&url).send().await.is_ok()).await;
    let call = async |method: &str, path: &str, body: Value| -> Value {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let request = http.request(method, format!("{url}{path}")).bearer_auth(TOKEN);
        let request = request.header("Idempotency-Key", "one").header("Content-Type", "application/json");
        let answer = request.body(body.to_string()).send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {answer:?}");
        serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default()
    };
    let mut secrets = vec![TOKEN.to_owned()];
    let tenant =
        call("POST", "/tenants", json!({"name": "acme"})).await["tenant_id"].as_str().unwrap().to_owned();
    let key = call("POST", &format!("/tenants/{tenant}/keys"), json!({})).await;
    let key_id = key["key_id"].as_str().unwrap();
    let successor = call("POST", &format!("/keys/{key_id}/rotate"), json!({})).await;
    for key in [&key, &successor] {
        secrets.push(key["key"].as_str().unwrap().to_owned());
    }
    let plan = call("GET", "/plans/growth", json!({})).await;
    // Twice: the second time nothing changes.
    for _ in 0..2 {
        call("PUT", "/plans/growth", plan.clone()).await;
        call("POST", "/tenants", json!({"name": "acme"})).await;
        call("POST", &format!("/tenants/{tenant}/suspend"), json!({})).await;
        call("PUT", &format!("/tenants/{tenant}/plan"), json!({"plan": "growth"})).await;
        call("POST", &format!("/tenants/{tenant}/deposits"), json!({"amount_usd": "1"})).await;
    }
    call("POST", &format!("/tenants/{tenant}/resume"), json!({})).await;
    call("PUT", "/plans/agency", {
        let mut plan = plan;
        plan["plan"] = json!("agency");
        plan
    })
    .await;
    call("DELETE", &format!("/keys/{key_id}"), json!({})).await;
    server.signal("TERM");
    assert_eq!(server.ended().await, Some(0));

    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let changes: Vec<_> = lines.iter().filter(|line| line["admin"] == "api").collect();
    let messages: Vec<_> = changes.iter().map(|line| line["message"].as_str().unwrap()).collect();
    assert_eq!(
        messages,
        [
            "tenant created",
            "key created",
            "key rotated",
            "tenant's status set",
            "plan assigned",
            "deposited",
            "tenant's status set",
            "plan set",
            "key revoked"
        ]
    );
    for line in &changes {
        assert!(line["trace_id"].as_str().is_some_and(|trace| trace.len() == 32), "{line}");
        assert!(line["tenant_id"] == tenant || line["message"] == "plan set", "{line}");
    }
    assert!(secrets.iter().all(|secret| !text.contains(secret)), "{text}");

    // From a shell, beside the answer.
    let (code, out, err) = dpp(&app.place, &["tenant", "suspend", &tenant, "--json"]).await;
    let line: Value = err.lines().filter_map(|line| serde_json::from_str(line).ok()).next().unwrap();
    assert_eq!((code, &line["admin"], &line["status"]), (0, &json!("cli"), &json!("SUSPENDED")), "{err}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["status"], "SUSPENDED");
    let (code, out, err) = dpp(&app.place, &["key", "create", "--tenant", &tenant, "--json"]).await;
    let made: Value = serde_json::from_str(&out).unwrap();
    assert!(code == 0 && err.contains(made["key_id"].as_str().unwrap()), "{err}");
    assert!(!err.contains(made["key"].as_str().unwrap()), "{err}");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dpp_plan_set_makes_plans_and_edits_what_is_named() {
    let app = start().await;
    let set = async |words: &[&str]| -> (i32, Value, String) {
        let (code, out, err) = dpp(&app.place, &[&["plan", "set", "--json", "--plan"], words].concat()).await;
        (code, serde_json::from_str(&out).unwrap_or_default(), err)
    };
    let before = get(&app, "/plans/growth").await.body;
    let (code, plan, err) = set(&[
        "growth",
        "--retention-days",
        "31",
        "--pack-cost-max",
        "url=2",
        "--pack-cost-max",
        "decision=0.5",
    ])
    .await;
    assert_eq!(code, 0, "{err}");
    let mut expected = before.clone();
    expected["retention_days"] = json!(31);
    expected["pack_cost_max_usd"] = json!({"decision": "0.5000", "url": "2.0000"});
    assert_eq!(plan, expected, "what is not named stays");
    assert_eq!(get(&app, "/plans/growth").await.body, expected);
    let words = [
        "growth",
        "--packs",
        "url,decision",
        "--pack-cost-max",
        "url=0",
        "--run-cost-max",
        "0",
        "--runs-per-minute",
        "0",
    ];
    let (code, plan, err) = set(&words).await;
    assert_eq!(code, 0, "{err}");
    expected["allowed_packs"] = json!(["decision", "url"]);
    expected["pack_cost_max_usd"] = json!({"decision": "0.5000"});
    expected["run_cost_max_usd"] = Value::Null;
    expected["runs_per_minute"] = Value::Null;
    assert_eq!(plan, expected);
    let (_, plan, _) = set(&["growth", "--packs", "all"]).await;
    assert_eq!(plan["allowed_packs"], Value::Null);

    // A new one is named in full.
    let (code, _, err) = set(&["agency", "--run-cost-max", "5"]).await;
    assert_eq!(code, 2);
    for option in [
        "--runs-per-minute",
        "--polls-per-minute",
        "--concurrent-runs-max",
        "--monthly-spend-max",
        "--timebox-sec-max",
        "--retention-days",
    ] {
        assert!(err.contains(&format!("{option} is required")), "{option} in {err}");
    }
    assert!(!err.contains("--run-cost-max"), "{err}");
    let whole = [
        "agency",
        "--run-cost-max",
        "5",
        "--runs-per-minute",
        "1",
        "--polls-per-minute",
        "2",
        "--concurrent-runs-max",
        "3",
        "--monthly-spend-max",
        "4.5",
        "--timebox-sec-max",
        "6",
        "--retention-days",
        "7",
    ];
    let (code, plan, err) = set(&whole).await;
    assert_eq!(
        (code, &plan["monthly_spend_max_usd"], &plan["allowed_packs"]),
        (0, &json!("4.5000"), &Value::Null),
        "{err}"
    );
    for (words, part) in [
        (vec!["agency", "--packs", "decison"], "--packs \"decison\" is no pack; the packs are decision, url"),
        (vec!["agency", "--pack-cost-max", "decision"], "PACK=USD"),
        (vec!["agency", "--pack-cost-max", "decision=-1"], "US dollars"),
        (vec!["agency", "--pack-cost-max", "decision=0.0049"], "--pack-cost-max decision= must be 0"),
        (vec!["agency", "--run-cost-max", "10000.0001"], "--run-cost-max must be 0"),
        (
            vec!["agency", "--timebox-sec-max", "0"],
            "--timebox-sec-max must be a whole number from 1 to 86400",
        ),
        (
            vec!["agency", "--concurrent-runs-max", "-1"],
            "--concurrent-runs-max must be a whole number from 0",
        ),
        (vec!["a/b", "--retention-days", "1"], "--plan must be"),
    ] {
        let (code, _, err) = set(&words).await;
        assert!(code == 2 && err.contains(part), "{words:?}: {code} {err}");
    }
    let (code, out, _) = dpp(&app.place, &["plan", "list"]).await;
    assert!(code == 0 && out.contains("growth") && out.contains("(decision $0.5000)"), "{out}");
    assert_eq!(dpp(&app.place, &["plan", "list", "--json"]).await.0, 0);
    app.finish().await;
}
