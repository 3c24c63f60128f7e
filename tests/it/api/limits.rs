//! Limits of plans and keys: never more than they say, and no refusal that they do not call for (P10).

use chrono::{DateTime, Datelike as _, Months, TimeDelta, TimeZone as _, Utc};
use dpp::{
    domain::{id::TenantId, money::UsdMicros},
    flow::{
        crash::{CrashPoint, Fault},
        deposit,
    },
    reaper::Pass,
};
use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use super::is_problem;
use crate::harness::{Answer, Tenant, TestApp, decision, until};

async fn limited(app: &TestApp, deposit_usd: &str, limits: &str) -> Tenant {
    let tenant = app.tenant(deposit_usd).await;
    app.limit(&tenant, limits).await;
    tenant
}

/// Lets everything that is counted in windows become older.
async fn pass(app: &TestApp, tenant: TenantId, by_ms: u64) {
    let windows: Vec<String> = app.place.redis(&["KEYS", &format!("dpp:{{{tenant}}}:*s*")]).await;
    for window in windows.iter().filter(|name| name.contains(":runs") || name.contains(":polls")) {
        let counted: Vec<String> = app.place.redis(&["ZRANGE", window, "0", "-1"]).await;
        for name in counted {
            let _: String = app.place.redis(&["ZINCRBY", window, &format!("-{by_ms}"), &name]).await;
        }
    }
}

/// A 429 says which limit, whose, its size, and when to come back.
fn is_limit(answer: &Answer, slug: &str, limit: &str, of: &str, max: Value) {
    is_problem(answer, 429, slug);
    let body = &answer.body;
    assert_eq!(
        (&body["limit"], &body["limit_of"], &body["limit_max"]),
        (&json!(limit), &json!(of), &max),
        "{answer:?}"
    );
    let retry_after = answer.header("retry-after").unwrap_or_else(|| panic!("no Retry-After in {answer:?}"));
    assert_eq!(body["retry_after_sec"].to_string(), retry_after);
    assert!(retry_after.parse::<u32>().unwrap() > 0);
}

async fn post(app: &TestApp, key: &str, path: &str, body: &Value) -> Answer {
    let request = app.request(Method::POST, path).bearer_auth(key);
    app.send(request.header("Content-Type", "application/json").body(body.to_string())).await
}

/// A key of the tenant with limits.
async fn key(app: &TestApp, tenant: &Tenant, body: Value) -> (String, Tenant) {
    let made = post(app, &tenant.key, "/v1/keys", &body).await;
    assert_eq!(made.status, 201, "{made:?}");
    let text = |name: &str| made.body[name].as_str().unwrap().to_owned();
    (text("key_id"), Tenant { id: tenant.id, key: text("key") })
}

/// Submits many at once under keys of their own; the answers' statuses, counted: accepted and refused.
async fn at_once(
    app: &TestApp,
    tenant: &Tenant,
    prefix: &str,
    many: usize,
    max_cost_usd: &str,
) -> (usize, usize) {
    let body = decision(max_cost_usd);
    let keys: Vec<_> = (0..many).map(|number| format!("{prefix}-{number}")).collect();
    let answers = join_all(keys.iter().map(|key| app.post(tenant, key, &body))).await;
    let of = |status: u16| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!(of(202) + of(429), many, "{answers:?}");
    (of(202), of(429))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_a_minute_are_counted_once_each_in_any_minute() {
    let app = TestApp::start().await;
    let tenant = limited(&app, "3", "runs_per_minute = 3").await;
    for left in [2, 1] {
        let answer = app.post(&tenant, &format!("run-{left}"), &decision("1")).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        assert_eq!(answer.header("ratelimit-policy"), Some("\"runs\";q=3;w=60"));
        let told = answer.header("ratelimit").unwrap();
        assert!(told.starts_with(&format!("\"runs\";r={left};t=")), "{told}");
    }
    // What buys nothing does not count: a replay, a malformed body, a budget that does not cover it.
    let replay = app.post(&tenant, "run-2", &decision("1")).await;
    assert_eq!(replay.header("idempotent-replayed"), Some("true"));
    let malformed = app.post(&tenant, "bad", &json!({})).await;
    assert_eq!((malformed.status, malformed.header("ratelimit-policy")), (400, Some("\"runs\";q=3;w=60")));
    is_problem(&app.post(&tenant, "dear", &decision("1.5")).await, 422, "budget-exceeded");
    pass(&app, tenant.id, 59_000).await;
    let third = app.post(&tenant, "run-0", &decision("0.5")).await;
    assert!(third.header("ratelimit").unwrap().starts_with("\"runs\";r=0;t="), "{third:?}");

    let refused = app.post(&tenant, "later", &decision("0.1")).await;
    is_limit(&refused, "rate-limit-exceeded", "runs_per_minute", "tenant", json!(3));
    assert_eq!(refused.header("retry-after"), Some("1"), "the first two leave the window");
    assert!(refused.header("ratelimit").unwrap().starts_with("\"runs\";r=0;t=1"), "{refused:?}");
    // Past the edge of the minute only what has left the window comes back.
    pass(&app, tenant.id, 1_000).await;
    assert_eq!(at_once(&app, &tenant, "edge", 6, "0.0500").await, (2, 4));
    pass(&app, tenant.id, 60_000).await;
    assert_eq!(app.post(&tenant, "later", &decision("0.1")).await.status, 202, "the refused key was unused");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_submit_that_is_admitted_twice_counts_once() {
    let app = TestApp::start().await;
    let tenant = limited(&app, "10", "runs_per_minute = 2").await;
    for number in 0..2 {
        // The epoch ends between the gate and the insert, so the submit is admitted anew.
        let paused = app.cx.crash.pause(CrashPoint::SubmitInsert);
        let key = format!("run-{number}");
        let body = decision("1");
        let (answer, ()) = tokio::join!(app.post(&tenant, &key, &body), async {
            let reached = paused.reached().await;
            dpp::flow::rebuild::rebuild(&app.cx, tenant.id).await.unwrap();
            reached.go_on();
        });
        assert_eq!(answer.status, 202, "{answer:?}");
    }
    is_problem(&app.post(&tenant, "third", &decision("1")).await, 429, "rate-limit-exceeded");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_requests_are_counted_apart_and_go_on_without_the_gate() {
    let app = TestApp::start().await;
    let tenant = limited(&app, "5", "polls_per_minute = 3").await;
    let run_id = app.submit(&tenant, "one", "1").await;
    let path = format!("/v1/runs/{run_id}");
    let first = app.get(&path, &tenant.key).await;
    assert_eq!(first.header("ratelimit-policy"), Some("\"polls\";q=3;w=60"));
    assert_eq!(first.header("ratelimit"), Some("\"polls\";r=2;t=60"));
    let replay = app.post(&tenant, "one", &decision("1")).await;
    assert_eq!((replay.status, replay.header("ratelimit").unwrap().split(';').nth(1)), (202, Some("r=1")));
    is_problem(&app.get("/v1/runs/unknown", &tenant.key).await, 404, "not-found");
    for path in [path.as_str(), "/v1/runs", "/v1/packs", "/v1/budget"] {
        let refused = app.get(path, &tenant.key).await;
        is_limit(&refused, "rate-limit-exceeded", "polls_per_minute", "tenant", json!(3));
    }
    is_problem(&app.post(&tenant, "one", &decision("1")).await, 429, "rate-limit-exceeded");
    // A run can still be bought, and nobody else is kept waiting.
    app.submit(&tenant, "two", "1").await;
    let other = app.tenant("1").await;
    let unlimited = app.get("/v1/budget", &other.key).await;
    assert_eq!((unlimited.status, unlimited.header("ratelimit-policy")), (200, None));

    // The gate is lost: what cannot be counted is let through.
    let _: String = app.place.redis(&["FLUSHDB"]).await;
    let _: String = app.place.redis(&["SET", &format!("dpp:{{{}}}:polls", tenant.id), "no window"]).await;
    let uncounted = app.get(&path, &tenant.key).await;
    assert_eq!((uncounted.status, uncounted.header("ratelimit")), (200, None), "{uncounted:?}");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_runs_are_open_as_may_be_and_not_one_less() {
    let app = TestApp::start().await;
    let tenant = limited(&app, "100", "concurrent_runs_max = 3").await;
    assert_eq!(at_once(&app, &tenant, "first", 12, "1").await, (3, 9));
    let refused = app.post(&tenant, "more", &decision("1")).await;
    is_limit(&refused, "too-many-concurrent-runs", "concurrent_runs_max", "tenant", json!(3));

    // Ended in the ledger, and the gate does not know yet: that is no reason to refuse.
    app.cx.crash.arm(CrashPoint::Settle, Fault::DiesBefore);
    app.work().await;
    assert!(app.cx.crash.fired());
    let holds: i64 = app.place.redis(&["HLEN", &format!("dpp:{{{}}}:holds", tenant.id)]).await;
    assert!(holds > 0, "the gate is behind");
    assert_eq!(at_once(&app, &tenant, "second", 12, "1").await, (3, 9));
    // Redis forgets, and the limit holds.
    let _: String = app.place.redis(&["FLUSHDB"]).await;
    assert_eq!(at_once(&app, &tenant, "third", 6, "1").await, (0, 6));
    app.finish().await;
}

/// A run of a scripted pack that costs what its cap is.
fn dear(usd: &str) -> Value {
    json!({"pack_type": "scripted", "max_cost_usd": usd, "inputs": {"acts": [format!("charge {usd}")]}})
}

/// Moves the clock to the middle of the next month, so that no test meets a month's end by chance.
async fn next_month(app: &TestApp) {
    let now = app.cx.store.now().await.unwrap();
    let first = Utc.with_ymd_and_hms(now.year(), now.month(), 15, 12, 0, 0).unwrap();
    app.move_clock(first + Months::new(1) - now);
}

async fn now(app: &TestApp) -> DateTime<Utc> {
    app.cx.store.now().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_month_costs_no_more_than_it_may_and_the_next_begins_anew() {
    let app = TestApp::start().await;
    next_month(&app).await;
    let tenant = limited(&app, "100", "monthly_spend_max_usd_micros = 2000000").await;
    assert_eq!(at_once(&app, &tenant, "held", 10, "0.5").await, (4, 6));
    let refused = app.post(&tenant, "more", &decision("0.0120")).await;
    is_limit(&refused, "spend-limit-exceeded", "monthly_spend_max_usd", "tenant", json!("2.0000"));
    assert_eq!(
        (&refused.body["spent_usd"], &refused.body["requested_usd"]),
        (&json!("2.0000"), &json!("0.0120"))
    );
    assert_eq!(refused.header("retry-after"), Some("1"), "what is held may come back");

    // What was not used returns: 4 × $0.0120 are spent.
    app.work().await;
    assert_eq!(app.post(&tenant, "dear", &dear("1.9520")).await.status, 202);
    is_problem(&app.post(&tenant, "more", &decision("0.0120")).await, 429, "spend-limit-exceeded");
    app.work().await;
    let budget = app.get("/v1/budget", &tenant.key).await.body;
    assert_eq!(
        (&budget["charged_this_month_usd"], &budget["held_usd"]),
        (&json!("2.0000"), &json!("0.0000"))
    );
    let refused = app.post(&tenant, "more", &decision("0.0120")).await;
    is_limit(&refused, "spend-limit-exceeded", "monthly_spend_max_usd", "tenant", json!("2.0000"));
    let at = now(&app).await + TimeDelta::seconds(refused.body["retry_after_sec"].as_i64().unwrap());
    assert_eq!((at.day(), at.month()), (1, (now(&app).await + Months::new(1)).month()), "{at}");

    // A deposit, and a gate that forgets, raise no limit.
    deposit::deposit(&app.cx, tenant.id, "50".parse().unwrap(), "second").await.unwrap();
    is_problem(&app.post(&tenant, "more", &decision("0.0120")).await, 429, "spend-limit-exceeded");
    let _: String = app.place.redis(&["FLUSHDB"]).await;
    is_problem(&app.post(&tenant, "more", &decision("0.0120")).await, 429, "spend-limit-exceeded");
    // Nor does usage that was rolled up.
    app.reap().await;
    is_problem(&app.post(&tenant, "more", &decision("0.0120")).await, 429, "spend-limit-exceeded");

    next_month(&app).await;
    until("the key is looked up in the new month", async || {
        app.post(&tenant, "more", &decision("0.0120")).await.status == 202
    })
    .await;
    assert_eq!(app.get("/v1/budget", &tenant.key).await.body["charged_this_month_usd"], "0.0000");
    assert_eq!(at_once(&app, &tenant, "new", 10, "0.5").await, (3, 7), "less the $0.0120 that are held");
    app.finish().await;
}

/// The month is the ledger's, whatever of it has been rolled up, from its first day on, and nobody else's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_rolled_up_counts_once_and_in_its_month() {
    let app = TestApp::start().await;
    next_month(&app).await;
    let (tenant, other) = (app.tenant("10").await, app.tenant("20").await);
    let buy = async |name: &str| {
        app.submit(&tenant, name, "1").await;
        app.submit(&other, name, "1").await;
        app.work().await;
    };
    let month = async |of: TenantId| {
        let month = app.cx.store.month(of).await.unwrap();
        (month.charged.to_string(), month.base.to_string())
    };
    let text = |charged: &str, base: &str| (charged.to_owned(), base.to_owned());
    buy("before").await;
    let at = now(&app).await;
    let first = Utc.with_ymd_and_hms(at.year(), at.month(), 1, 1, 0, 0).unwrap() + Months::new(1);
    app.move_clock(first - at);
    assert_eq!(month(tenant.id).await, text("0.0000", "9.9880"));
    buy("first").await;
    for rolled in [false, true] {
        if rolled {
            app.move_clock(TimeDelta::days(1));
            assert_eq!(app.pass(Pass::Usage).await.changed, 2);
        }
        assert_eq!(month(tenant.id).await, text("0.0120", "9.9880"));
        assert_eq!(month(other.id).await, text("0.0120", "19.9880"));
    }
    buy("second").await;
    assert_eq!(month(tenant.id).await, text("0.0240", "9.9880"));
    assert_eq!(month(other.id).await, text("0.0240", "19.9880"));
    app.finish().await;
}

/// A charge that the old month's gate never saw, of a run that was held in the old month and ends in the new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_counts_in_the_month_in_which_it_is_charged() {
    let app = TestApp::start().await;
    next_month(&app).await;
    let tenant = limited(&app, "100", "monthly_spend_max_usd_micros = 1000000").await;
    assert_eq!(app.post(&tenant, "old", &dear("0.8")).await.status, 202);
    next_month(&app).await;
    is_problem(&app.post(&tenant, "new", &decision("0.5")).await, 429, "spend-limit-exceeded");
    app.work().await;
    is_problem(&app.post(&tenant, "new", &decision("0.5")).await, 429, "spend-limit-exceeded");
    assert_eq!(app.post(&tenant, "small", &dear("0.2")).await.status, 202);
    app.work().await;
    next_month(&app).await;
    until("the month is new", async || app.post(&tenant, "new", &decision("0.5")).await.status == 202).await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_worth_what_it_may_spend_and_so_are_all_that_come_from_it() {
    let app = TestApp::start().await;
    let tenant = app.tenant("100").await;
    let (key_id, agent) = key(&app, &tenant, json!({"max_spend_usd": "2.00"})).await;
    assert_eq!(at_once(&app, &agent, "held", 10, "0.5").await, (4, 6));
    let refused = app.post(&agent, "more", &decision("0.0120")).await;
    is_limit(&refused, "spend-limit-exceeded", "max_spend_usd", "key", json!("2.0000"));
    assert_eq!(
        (&refused.body["spent_usd"], &refused.body["requested_usd"]),
        (&json!("2.0000"), &json!("0.0120"))
    );
    app.submit(&tenant, "the-tenant-itself", "1").await;

    // What comes from it shares what it has, and has nothing more.
    let rotated = post(&app, &tenant.key, &format!("/v1/keys/{key_id}/rotate"), &json!({})).await;
    assert_eq!(
        (&rotated.body["max_spend_usd"], &rotated.body["spent_usd"]),
        (&json!("2.0000"), &json!("2.0000"))
    );
    let successor = Tenant { id: tenant.id, key: rotated.body["key"].as_str().unwrap().to_owned() };
    let (_, child) = key(&app, &successor, json!({"label": "child"})).await;
    for of in [&successor, &child] {
        let refused = app.post(of, "more", &decision("0.0120")).await;
        is_limit(&refused, "spend-limit-exceeded", "max_spend_usd", "key", json!("2.0000"));
    }
    for more in [json!({"max_spend_usd": "1"}), json!({"runs_per_minute": 5}), json!({"polls_per_minute": 5})]
    {
        is_problem(&post(&app, &child.key, "/v1/keys", &more).await, 403, "insufficient-scope");
    }
    let budget = app.get("/v1/budget", &child.key).await.body;
    assert_eq!(budget["key"]["spent_usd"], "2.0000");

    // What was not used returns, and can be spent by any of them, to the last cent.
    app.work().await;
    let spent = |body: &Value| body["spent_usd"].as_str().unwrap().to_owned();
    let listed = app.get("/v1/keys", &tenant.key).await.body;
    let listed =
        listed["data"].as_array().unwrap().iter().find(|key| key["key_id"] == key_id.as_str()).unwrap();
    assert_eq!(spent(listed), "0.0480");
    assert_eq!(app.post(&child, "dear", &dear("1.9520")).await.status, 202);
    is_problem(&app.post(&agent, "more", &decision("0.0120")).await, 429, "spend-limit-exceeded");
    app.work().await;
    is_problem(&app.post(&agent, "more", &decision("0.0120")).await, 429, "spend-limit-exceeded");
    assert_eq!(app.get("/v1/budget", &agent.key).await.body["key"]["spent_usd"], "2.0000");
    app.finish().await;
}

/// Three submits pass the look at the key together; its row lets one in. The others' reservations return in one
/// rebuild, and they count in no window.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_race_for_the_last_cent_of_a_key_has_one_winner_and_holds_nothing_back() {
    let app = TestApp::start().await;
    let tenant = limited(&app, "100", "runs_per_minute = 3").await;
    let (_, agent) = key(&app, &tenant, json!({"max_spend_usd": "1"})).await;
    let epoch = async || app.cx.store.epoch(tenant.id).await.unwrap();
    let paused = [app.cx.crash.pause(CrashPoint::SubmitInsert), app.cx.crash.pause(CrashPoint::SubmitInsert)];
    let body = decision("1");
    let faster = async {
        let [one, two] = paused;
        let (one, two) = (one.reached().await, two.reached().await);
        let faster = app.post(&agent, "faster", &body).await;
        let before = epoch().await;
        one.go_on();
        until("one's reservation has returned", async || epoch().await != before).await;
        let after = epoch().await;
        two.go_on();
        (faster, after)
    };
    let (one, two, (faster, after)) =
        tokio::join!(app.post(&agent, "one", &body), app.post(&agent, "two", &body), faster);
    assert_eq!(faster.status, 202, "{faster:?}");
    for slower in [one, two] {
        is_limit(&slower, "spend-limit-exceeded", "max_spend_usd", "key", json!("1.0000"));
    }
    assert_eq!(epoch().await, after, "one rebuild did");
    let available: String =
        app.place.redis(&["HGET", &format!("dpp:{{{}}}:budget", tenant.id), "available"]).await;
    assert_eq!(available.parse::<i64>().unwrap(), "99".parse::<UsdMicros>().unwrap().get());
    // The refused key is unused, and of the three one counts.
    app.work().await;
    for (name, left) in [("another", "1"), ("one", "0")] {
        let answer = app.post(&agent, name, &decision("0.4")).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        let limit = answer.header("ratelimit").unwrap();
        assert!(limit.starts_with(&format!("\"runs\";r={left};")), "{limit}");
    }
    app.finish().await;
}

/// Found in review: a copy that had looked for its key before another was accepted found the key's money spent, by
/// itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_of_a_submit_that_takes_all_of_a_key_are_all_answered_with_its_run() {
    let app = TestApp::start().await;
    let tenant = app.tenant("100").await;
    let body = decision("1");
    for round in 0..8 {
        let (_, agent) = key(&app, &tenant, json!({"max_spend_usd": "1"})).await;
        let name = format!("copy-{round}");
        let answers = join_all((0..12).map(|_| app.post(&agent, &name, &body))).await;
        for answer in &answers {
            assert_eq!((answer.status, answer.run_id()), (202, answers[0].run_id()), "{answer:?}");
        }
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_has_limits_of_its_own_beside_the_tenants() {
    let app = TestApp::start().await;
    let tenant = limited(&app, "100", "runs_per_minute = 4, polls_per_minute = 100").await;
    let (_, agent) = key(&app, &tenant, json!({"runs_per_minute": 2, "polls_per_minute": 1})).await;
    let first = app.post(&agent, "one", &decision("1")).await;
    assert_eq!(first.header("ratelimit-policy"), Some("\"runs\";q=4;w=60, \"key-runs\";q=2;w=60"));
    assert_eq!(first.header("ratelimit"), Some("\"runs\";r=3;t=60, \"key-runs\";r=1;t=60"));
    let (_, child) = key(&app, &tenant, json!({"runs_per_minute": 2})).await;
    app.submit(&agent, "two", "1").await;
    is_limit(
        &app.post(&agent, "three", &decision("1")).await,
        "rate-limit-exceeded",
        "runs_per_minute",
        "key",
        json!(2),
    );
    // Another key's count is its own; the tenant's is everybody's.
    app.submit(&child, "three", "1").await;
    app.submit(&tenant, "four", "1").await;
    is_limit(
        &app.post(&child, "five", &decision("1")).await,
        "rate-limit-exceeded",
        "runs_per_minute",
        "tenant",
        json!(4),
    );
    assert_eq!(app.get("/v1/packs", &agent.key).await.status, 200);
    is_limit(
        &app.get("/v1/packs", &agent.key).await,
        "rate-limit-exceeded",
        "polls_per_minute",
        "key",
        json!(1),
    );
    assert_eq!(app.get("/v1/packs", &child.key).await.status, 200);
    // A limit of what it may spend is not among them.
    assert_eq!(app.work().await, 4);

    for bad in [
        json!({"max_spend_usd": 2}),
        json!({"max_spend_usd": "0"}),
        json!({"max_spend_usd": "-1"}),
        json!({"max_spend_usd": "1.00001"}),
        json!({"max_spend_usd": "1000000000.0001"}),
        json!({"runs_per_minute": 0}),
        json!({"runs_per_minute": 1.5}),
        json!({"polls_per_minute": 2_147_483_648_u64}),
    ] {
        let refused = post(&app, &tenant.key, "/v1/keys", &bad).await;
        is_problem(&refused, 400, "invalid-request");
        let name = bad.as_object().unwrap().keys().next().unwrap();
        assert_eq!(refused.body["errors"][0]["pointer"], format!("/{name}"));
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_that_changes_is_felt_within_seconds() {
    let app = TestApp::start().await;
    let tenant = limited(&app, "100", "concurrent_runs_max = 1").await;
    app.submit(&tenant, "one", "1").await;
    is_problem(&app.post(&tenant, "two", &decision("1")).await, 429, "too-many-concurrent-runs");
    app.limit(&tenant, "concurrent_runs_max = 2").await;
    until("the plan is known", async || app.post(&tenant, "two", &decision("1")).await.status == 202).await;
    app.finish().await;
}
