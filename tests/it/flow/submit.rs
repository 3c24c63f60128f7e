//! Submit and finish.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use dpp::{
    budget::{Ask, Reserve},
    domain::{id::RunId, idempotency::PayloadHash, limit::GateLimits},
    flow::crash::{CrashPoint, Fault},
};
use futures::future::join_all;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{DECISION_COST, TestApp, decision, services::Place, until};

async fn client(app: &TestApp) -> tokio_postgres::Client {
    let (client, connection) =
        tokio_postgres::connect(&app.place.database_url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Until somebody asks a statement from now on: an idle connection shows what it was asked last.
async fn until_looked_at(watches: &tokio_postgres::Client, statement: &str) {
    let now: String = watches.query_one("SELECT clock_timestamp()::text", &[]).await.unwrap().get(0);
    let looks = format!(
        "SELECT 1 FROM pg_stat_activity WHERE query LIKE '-- {statement}%' AND datname = current_database()
            AND query_start > '{now}'"
    );
    until("somebody looks", async || !watches.query(&looks, &[]).await.unwrap().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_submitted_worked_on_delivered_and_paid() {
    let app = TestApp::start().await;
    let tenant = app.tenant("10").await;

    let answer = app.post(&tenant, "one", &decision("5.00")).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(answer.body["status"], "QUEUED");
    assert_eq!(answer.body["money_state"], "RESERVED");
    assert_eq!(answer.body["reserved_cost_usd"], "5.0000");
    assert_eq!(answer.body["minimum_fee_usd"], "0.1000");
    assert_eq!(answer.body["actual_cost_usd"], Value::Null);
    let run_id = answer.run_id();
    assert_eq!(answer.header("location"), Some(format!("/v1/runs/{run_id}").as_str()));
    assert_eq!(answer.header("x-dpp-cost-reserved"), Some("5.0000"));
    let held = app.get("/v1/budget", &tenant.key).await.body;
    assert_eq!((&held["available_usd"], &held["held_usd"]), (&json!("5.0000"), &json!("5.0000")));

    assert_eq!(app.work().await, 1);
    let run = app.run(&tenant, run_id).await;
    assert_eq!((&run["status"], &run["money_state"]), (&json!("COMPLETED"), &json!("SETTLED")), "{run}");
    assert_eq!(run["actual_cost_usd"], DECISION_COST);
    assert_eq!(run["attempts"], 1);

    let redirect = app.get(&format!("/v1/runs/{run_id}/result"), &tenant.key).await;
    assert_eq!(redirect.status, 303);
    let url = redirect.header("location").unwrap();
    let bytes = reqwest::get(url).await.unwrap().bytes().await.unwrap();
    assert_eq!(dpp::domain::api_key::hex(&Sha256::digest(&bytes)), run["result_sha256"].as_str().unwrap());
    let envelope: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(envelope["run_id"], run["run_id"]);
    assert_eq!(envelope["cost"]["used_usd"], DECISION_COST);
    assert_eq!(envelope["meta"]["trace_id"], run["trace_id"]);
    let tampered = url.replace("X-Amz-Expires=900", "X-Amz-Expires=901");
    assert_eq!(reqwest::get(tampered).await.unwrap().status(), 403);

    let after = app.get("/v1/budget", &tenant.key).await.body;
    assert_eq!(after["available_usd"], "9.9880");
    assert_eq!(after["charged_usd"], DECISION_COST);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_submit_again_is_the_same_run_and_another_under_its_key_is_refused() {
    let app = TestApp::start().await;
    let tenant = app.tenant("10").await;
    let run_id = app.submit(&tenant, "key", "1").await;

    // The same JSON in another order, and the key as a structured-field string.
    let text = r#"{ "inputs": {"options":[{"scores":{"speed":3,"price":10},"name":"A"},{"scores":{"price":14.0,"speed":9},"name":"B"}],
        "criteria":[{"weight":2,"direction":"minimize","name":"price"},{"name":"speed","weight":1}]},
        "max_cost_usd":"1", "pack_type":"decision" }"#;
    let request = app
        .request(reqwest::Method::POST, "/v1/runs")
        .bearer_auth(&tenant.key)
        .header("Idempotency-Key", "\"key\"")
        .header("Content-Type", "application/json; charset=utf-8")
        .body(text);
    let again = app.send(request).await;
    assert_eq!((again.status, again.header("idempotent-replayed")), (202, Some("true")), "{again:?}");
    assert_eq!(again.run_id(), run_id);

    let other = app.post(&tenant, "key", &decision("1.0")).await;
    assert_eq!((other.status, other.slug()), (409, "idempotency-key-reused"));

    app.work().await;
    let done = app.post(&tenant, "key", &decision("1")).await;
    assert_eq!((done.status, &done.body["status"]), (202, &json!("COMPLETED")));
    assert_eq!(done.run_id(), run_id);
    // Another tenant's key of the same name is another key.
    let neighbour = app.tenant("10").await;
    assert_ne!(app.submit(&neighbour, "key", "1").await, run_id);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_submits_of_one_key_at_once_are_one_run() {
    let app = TestApp::start().await;
    // Enough for one: if two reserved, the second would be refused.
    let tenant = app.tenant("1").await;

    let body = decision("1");
    let answers = join_all((0..50).map(|_| app.post(&tenant, "same", &body))).await;

    let run_id = answers[0].run_id();
    for answer in &answers {
        assert_eq!(answer.status, 202, "{answer:?}");
        assert_eq!(answer.run_id(), run_id);
    }
    assert_eq!(app.place.sql("SELECT count(*) FROM runs").await[0][0].as_deref(), Some("1"));
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_64_submits_at_once_exactly_the_10_that_the_budget_fits_are_accepted() {
    let app = TestApp::start().await;
    let tenant = app.tenant("10.0099").await;

    let body = decision("1");
    let keys: Vec<_> = (0..64).map(|number| format!("k{number}")).collect();
    let answers = join_all(keys.iter().map(|key| app.post(&tenant, key, &body))).await;

    let accepted = answers.iter().filter(|answer| answer.status == 202).count();
    assert_eq!(accepted, 10);
    for refused in answers.iter().filter(|answer| answer.status != 202) {
        assert_eq!((refused.status, refused.slug()), (422, "budget-exceeded"), "{refused:?}");
        assert_eq!(refused.body["requested_usd"], "1.0000");
    }
    // A refused submit leaves its key unused.
    app.work().await;
    let refused = keys.iter().zip(&answers).find(|(_, answer)| answer.status == 422).unwrap().0;
    app.submit(&tenant, refused, "1").await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_exact_even_when_the_gate_lags_behind_the_ledger() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    app.submit(&tenant, "first", "1").await;
    // The worker dies after the ledger has ended the hold and before the gate hears of it.
    app.cx.crash.arm(dpp::flow::crash::CrashPoint::Settle, dpp::flow::crash::Fault::DiesBefore);
    app.work().await;

    app.submit(&tenant, "second", "0.98").await;

    app.finish().await;
}

/// What is under way decides whether it fits, and is waited for a moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_waits_for_a_submit_under_way() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    let (holds_up, watches) = (client(&app).await, client(&app).await);
    holds_up.batch_execute("BEGIN").await.unwrap();
    let row = format!("SELECT 1 FROM tenants WHERE tenant_id = '{}' FOR UPDATE", tenant.id);
    holds_up.batch_execute(&row).await.unwrap();
    let body = decision("1");

    let second = async {
        let held = async || app.cx.budget.inspect(tenant.id).await.unwrap().holds.len() == 1;
        until("the first is through the gate", held).await;
        app.post(&tenant, "second", &body).await
    };
    let lets_go = async {
        until_looked_at(&watches, "outcomes").await;
        holds_up.batch_execute("ROLLBACK").await.unwrap();
    };
    let (first, second, ()) = tokio::join!(app.post(&tenant, "first", &body), second, lets_go);

    assert_eq!(first.status, 202, "{first:?}");
    assert_eq!((second.status, second.slug()), (422, "budget-exceeded"), "{second:?}");
    app.finish().await;
}

/// Found in review: whoever waited for a reservation that came to nothing was answered 503, though it fitted. What
/// will not fit whatever comes of it is refused, by what there is then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_nothing_calls_for_any_more_is_none() {
    let app = TestApp::start().await;
    let watches = client(&app).await;
    // The budget, and a month of which a part is spent; the figure by which the first is refused.
    let short = (app.tenant("1").await, "1.0001", (422, "available_usd", "1.0000"), "1");
    let spent = (app.tenant("10").await, "1.5001", (429, "spent_usd", "0.5000"), "1.5");
    app.limit(&spent.0, "monthly_spend_max_usd_micros = 2000000").await;
    app.submit(&spent.0, "open", "0.5").await;
    for (tenant, above, (status, figure, value), exactly) in [short, spent] {
        let run_id = RunId::new();
        let reserve = app.cx.budget.reserve(Ask {
            tenant_id: tenant.id,
            run_id,
            amount: "1".parse().unwrap(),
            key_fingerprint: "theirs",
            payload: PayloadHash([0; 32]),
            limits: GateLimits::default(),
        });
        assert!(matches!(reserve.await.unwrap(), Reserve::Held { .. }));
        let refused = app.post(&tenant, "refused", &decision(above)).await;
        assert_eq!((refused.status, &refused.body[figure]), (status, &json!(value)), "{refused:?}");
        let body = decision(exactly);
        let (answer, ()) = tokio::join!(app.post(&tenant, "waits", &body), async {
            until_looked_at(&watches, "outcomes").await;
            app.cx.budget.let_go(tenant.id, run_id).await.unwrap();
        });
        assert_eq!(answer.status, 202, "{answer:?}");
    }
    app.finish().await;
}

/// What a submit says whose insert was not answered: what has become of it, and whose run it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unanswered_insert_is_read_back() {
    let app = TestApp::start().await;
    let tenant = app.tenant("10").await;
    let body = decision("1");
    // Also where the first look fails.
    app.cx.crash.arm(CrashPoint::SubmitInsert, Fault::AnswerLost);
    app.cx.crash.arm(CrashPoint::RebuildRaise, Fault::NotApplied);
    let answer = app.post(&tenant, "lost", &body).await;
    assert_eq!((answer.status, answer.header("idempotent-replayed")), (202, None), "{answer:?}");
    assert_eq!(app.work().await, 1, "and a message was sent");

    // A copy was accepted, and has ended, before this one comes to the gate; its own insert then fails.
    let paused = app.cx.crash.pause(CrashPoint::SubmitReserve);
    let (slower, faster) = tokio::join!(app.post(&tenant, "copied", &body), async {
        let reached = paused.reached().await;
        let faster = app.post(&tenant, "copied", &body).await;
        app.work().await;
        app.cx.crash.arm(CrashPoint::SubmitInsert, Fault::NotApplied);
        reached.go_on();
        faster
    });
    assert_eq!((faster.status, faster.header("idempotent-replayed")), (202, None), "{faster:?}");
    assert_eq!(slower.header("idempotent-replayed"), Some("true"), "{slower:?}");
    assert_eq!(slower.run_id(), faster.run_id());
    assert!(app.cx.crash.fired());
    app.finish().await;
}

/// Found in review: a submit that waited for its tenant's lock saw the tenant as it was before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspension_stops_a_submit_that_waits() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    let watches = client(&app).await;
    let books = app.cx.store.lock_books(tenant.id).await.unwrap().unwrap();
    let suspends = async {
        let waits = "SELECT 1 FROM pg_stat_activity \
            WHERE query LIKE '-- submit_run%' AND datname = current_database() AND wait_event = 'advisory'";
        until("the submit waits", async || !watches.query(waits, &[]).await.unwrap().is_empty()).await;
        assert!(app.cx.store.set_suspended(tenant.id, true).await.unwrap());
        books.commit().await.unwrap();
    };
    let body = decision("1");
    let (answer, ()) = tokio::join!(app.post(&tenant, "waits", &body), suspends);
    assert_eq!((answer.status, answer.slug()), (403, "tenant-suspended"), "{answer:?}");
    assert!(app.cx.store.open_holds(tenant.id).await.unwrap().is_empty());
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_hangs_up_stops_nothing() {
    let app = Arc::new(TestApp::start().await);
    let tenant = app.tenant("100").await;
    for number in 0..20 {
        let hanging = {
            let (app, tenant) = (Arc::clone(&app), tenant.clone());
            tokio::spawn(async move { app.post(&tenant, &format!("k{number}"), &decision("1")).await })
        };
        tokio::task::yield_now().await;
        hanging.abort();
        drop(hanging.await);
    }
    // Whatever was begun comes to its end: reservations and holds agree.
    let app = Arc::into_inner(app).unwrap();
    until("every reservation has a run", async || {
        app.reap().await;
        let open = app.cx.store.open_holds(tenant.id).await.unwrap().len();
        app.cx.budget.inspect(tenant.id).await.unwrap().holds.len() == open
    })
    .await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_tenant_buys_nothing_and_its_waiting_runs_wait() {
    let app = TestApp::start().await;
    let tenant = app.tenant("10").await;
    let run_id = app.submit(&tenant, "before", "1").await;
    app.cx.store.set_suspended(tenant.id, true).await.unwrap();

    until("the suspension is known", async || {
        let answer = app.post(&tenant, &uuid::Uuid::new_v4().to_string(), &decision("1")).await;
        answer.status == 403 && answer.slug() == "tenant-suspended"
    })
    .await;
    // A refusal leaves nothing at the gate.
    assert_eq!(app.cx.budget.inspect(tenant.id).await.unwrap().holds.len(), 1);
    app.work().await;
    assert_eq!(app.run(&tenant, run_id).await["status"], "QUEUED");

    app.cx.store.set_suspended(tenant.id, false).await.unwrap();
    app.move_clock(chrono::TimeDelta::seconds(10));
    app.quiet().await;
    assert_eq!(app.run(&tenant, run_id).await["status"], "COMPLETED");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pack_that_fails_costs_at_least_the_minimum_fee_and_at_most_the_hold() {
    let app = TestApp::start().await;
    let tenant = app.tenant("10").await;
    // Nothing listens there; loopback is allowed in tests.
    let body = json!({"pack_type": "url", "max_cost_usd": "1", "inputs": {"url": "http://127.0.0.1:9/"}});
    let answer = app.post(&tenant, "u", &body).await;
    assert_eq!(answer.status, 202, "{answer:?}");

    app.work().await;

    let run = app.run(&tenant, answer.run_id()).await;
    assert_eq!((&run["status"], &run["money_state"]), (&json!("FAILED"), &json!("SETTLED")), "{run}");
    assert_eq!(run["actual_cost_usd"], "0.0200");
    assert_eq!(run["error"]["reason_code"], "fetch_failed");
    let result = app.get(&format!("/v1/runs/{}/result", answer.run_id()), &tenant.key).await;
    assert_eq!((result.status, result.slug()), (409, "run-not-completed"));
    app.finish().await;
}

/// A way to PostgreSQL that can keep the answers back.
pub struct SlowWay {
    port: u16,
    pub open: tokio::sync::watch::Sender<bool>,
    kept: Arc<AtomicBool>,
}

impl SlowWay {
    /// Another app of the same place, whose way is slow.
    pub async fn app(place: &Place) -> (TestApp, Self) {
        let port = place.database_url.parse::<url::Url>().unwrap().port().unwrap();
        let way = Self::to(port).await;
        let mut place = place.clone();
        let slow = place.database_url.replace(&format!(":{port}/"), &format!(":{}/", way.port));
        place.environment.insert("DATABASE_URL".to_owned(), slow);
        (TestApp::on(place, &[]), way)
    }

    /// Waits until an answer is kept back.
    pub async fn keeps(&self) {
        until("an answer is kept back", async || self.kept.load(Ordering::Relaxed)).await;
    }

    async fn to(port: u16) -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let way = Self {
            port: listener.local_addr().unwrap().port(),
            open: tokio::sync::watch::Sender::new(true),
            kept: Arc::default(),
        };
        let (open, kept) = (way.open.subscribe(), Arc::clone(&way.kept));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let ((mut asked, mut told), (mut answered, mut asks)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(async move { tokio::io::copy(&mut asked, &mut asks).await });
                let (mut open, kept) = (open.clone(), Arc::clone(&kept));
                tokio::spawn(async move {
                    let mut bytes = [0; 65_536];
                    while let Ok(count @ 1..) = answered.read(&mut bytes).await {
                        kept.fetch_or(!*open.borrow(), Ordering::Relaxed);
                        if open.wait_for(|open| *open).await.is_err()
                            || told.write_all(&bytes[..count]).await.is_err()
                        {
                            break;
                        }
                    }
                });
            }
        });
        way
    }
}

/// Found by thought, next to the chaos test: a replica that was paused after it had looked for the key refused
/// for lack of budget what another replica had accepted meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_came_to_be_used_meanwhile_is_answered_with_its_run_and_not_refused() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    let (paused, way) = SlowWay::app(&app.place).await;
    let paused = Arc::new(paused);
    // From now on it knows the caller, and its connection the statement: the next thing asked is the key.
    assert_eq!(paused.post(&tenant, "too-much", &decision("5")).await.status, 422);

    way.open.send_replace(false);
    let first = tokio::spawn({
        let (paused, tenant) = (Arc::clone(&paused), tenant.clone());
        async move { paused.post(&tenant, "one", &decision("1")).await }
    });
    way.keeps().await;
    let run_id = app.submit(&tenant, "one", "1").await;
    app.work().await;
    app.submit(&tenant, "another", "0.9").await;
    way.open.send_replace(true);

    let first = first.await.unwrap();
    assert_eq!(first.status, 202, "{first:?}");
    assert_eq!((first.run_id(), first.header("idempotent-replayed")), (run_id, Some("true")));
    Arc::into_inner(paused).expect("nobody else has it").abandon();
    app.finish().await;
}
