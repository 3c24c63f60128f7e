//! `Prefer: wait=N`: answered as soon as the run has ended, or after N seconds as if nobody had asked.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use dpp::{
    domain::id::RunId,
    flow::{
        crash::{CrashPoint, Fault},
        wait::Waits,
    },
    local::redis::Redis,
    reaper::Pass,
};
use futures::future::{join, join_all};
use reqwest::Method;
use serde_json::{Value, json};

use super::is_problem;
use crate::harness::{
    Answer, Limits, PATIENCE, Tenant, TestApp, decision,
    process::Process,
    s3::S3,
    services::{Place, shared},
    until,
};

/// No test lasts until then: what is answered was woken in another way.
const NEVER: Duration = Duration::from_secs(3_600);

async fn get(app: &TestApp, tenant: &Tenant, run_id: RunId, prefer: &str) -> Answer {
    let request = app.request(Method::GET, &format!("/v1/runs/{run_id}")).bearer_auth(&tenant.key);
    app.send(request.header("Prefer", prefer).timeout(Duration::from_secs(90))).await
}

async fn post(app: &TestApp, key: &str, idempotency_key: &str, prefer: &str) -> Answer {
    let request = app
        .request(Method::POST, "/v1/runs")
        .bearer_auth(key)
        .header("Idempotency-Key", idempotency_key)
        .header("Content-Type", "application/json")
        .header("Prefer", prefer)
        .timeout(Duration::from_secs(90))
        .body(decision("0.1").to_string());
    app.send(request).await
}

async fn waiting(app: &TestApp, count: usize) {
    until(&format!("{count} wait"), async || app.cx.waits.count() == count).await;
}

fn limits(look_interval: Duration, count_max: usize) -> Limits {
    Limits { waits: Waits::new(look_interval, count_max), ..Limits::default() }
}

fn ended(answer: &Answer, preference: &str) {
    assert_eq!((answer.status, &answer.body["status"]), (200, &json!("COMPLETED")), "{answer:?}");
    assert_eq!(answer.header("preference-applied"), Some(preference));
    assert_eq!(answer.header("retry-after"), None);
    assert!(answer.body["result_url"].is_string() && answer.header("x-dpp-cost-actual").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_has_ended_is_not_waited_for_and_a_preference_is_read_as_the_standard_says() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    let run_id = app.submit(&tenant, "one", "0.1").await;
    app.work().await;
    let begun = Instant::now();
    for (headers, applied) in [
        (vec!["wait=60"], Some("wait=60")),
        (vec!["wait=1"], Some("wait=1")),
        (vec!["wait=007"], Some("wait=7")),
        (vec!["WAIT = 5"], Some("wait=5")),
        (vec!["wait=\"5\""], Some("wait=5")),
        (vec!["wait=5; foo"], Some("wait=5")),
        (vec!["wait=5;a=\";,wait=9\", wait=8"], Some("wait=5")),
        (vec!["respond-async, wait=5, handling=lenient"], Some("wait=5")),
        (vec!["respond-async", "wait=5"], Some("wait=5")),
        (vec!["wait=5", "wait=6"], Some("wait=5")),
        (vec!["note=\"a, wait=9, \\\", wait=8\", ,, wait=5"], Some("wait=5")),
        // Above the most is the most, and the answer says so.
        (vec!["wait=61"], Some("wait=60")),
        (vec!["wait=99999999999999999999999"], Some("wait=60")),
        // What cannot be followed is not there; the first of a name is the one that counts.
        (vec!["wait=0"], None),
        (vec!["wait=abc", "wait=5"], None),
        (vec!["wait"], None),
        (vec!["wait="], None),
        (vec!["wait=-1"], None),
        (vec!["wait=+1"], None),
        (vec!["wait=1.5"], None),
        (vec!["wait=5 s"], None),
        (vec!["await=5"], None),
        (vec!["note=\"wait=5"], None),
        (vec![""], None),
        (vec!["=5,;,\"\\"], None),
    ] {
        for method in [Method::GET, Method::HEAD] {
            let request = app.request(method, &format!("/v1/runs/{run_id}")).bearer_auth(&tenant.key);
            let request = headers.iter().fold(request, |request, value| request.header("Prefer", *value));
            let answer = app.send(request).await;
            assert_eq!((answer.status, answer.header("preference-applied")), (200, applied), "{headers:?}");
        }
    }
    // A submit that is repeated waits as well, and has nothing to wait for.
    let again = post(&app, &tenant.key, "one", "wait=60").await;
    ended(&again, "wait=60");
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.header("location"), Some(format!("/v1/runs/{run_id}").as_str()));
    assert_eq!(again.run_id(), run_id);
    // Who did not ask is answered as ever.
    assert_eq!(app.post(&tenant, "one", &decision("0.1")).await.status, 202);
    assert!(begun.elapsed() < Duration::from_secs(50), "nothing was waited for");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_time_is_up_the_answer_is_the_usual_one() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    let begun = Instant::now();
    let accepted = post(&app, &tenant.key, "one", "wait=1").await;
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!((accepted.status, &accepted.body["status"]), (202, &json!("QUEUED")), "{accepted:?}");
    assert_eq!(accepted.header("preference-applied"), Some("wait=1"));
    assert_eq!(accepted.header("retry-after"), Some("1"));
    let run_id = accepted.run_id();
    assert_eq!(accepted.header("location"), Some(format!("/v1/runs/{run_id}").as_str()));
    for method in [Method::GET, Method::HEAD] {
        let begun = Instant::now();
        let request = app.request(method, &format!("/v1/runs/{run_id}")).bearer_auth(&tenant.key);
        let answer = app.send(request.header("Prefer", "wait=1")).await;
        assert!(begun.elapsed() >= Duration::from_secs(1));
        assert_eq!((answer.status, answer.header("preference-applied")), (200, Some("wait=1")), "{answer:?}");
    }
    assert_eq!(app.cx.waits.count(), 0);
    app.finish().await;
}

/// What waits for a person has not ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_waits_for_an_operator_is_waited_for() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    let run_id = app.submit(&tenant, "one", "0.1").await;
    app.cx.crash.arm(CrashPoint::FinishPut, Fault::DiesBefore);
    app.work().await;
    let rows = app.place.sql(&format!("SELECT result_key FROM runs WHERE run_id = '{run_id}'")).await;
    S3::of(&app.place).put(rows[0][0].as_ref().unwrap(), &[], b"{}".to_vec()).await;
    app.move_clock(chrono::TimeDelta::minutes(1));
    assert_eq!(app.pass(Pass::Claims).await.changed, 1);
    let begun = Instant::now();
    let answer = get(&app, &tenant, run_id, "wait=1").await;
    assert_eq!((answer.status, &answer.body["money_state"]), (200, &json!("AUDIT_REQUIRED")), "{answer:?}");
    assert_eq!(answer.header("preference-applied"), Some("wait=1"));
    assert!(begun.elapsed() >= Duration::from_secs(1));
    app.finish().await;
}

/// How many listen for ends at this place's Redis.
async fn listeners(place: &Place) -> i64 {
    place.redis::<(String, i64)>(&["PUBSUB", "NUMSUB", "dpp:ended"]).await.1
}

/// With the look into the books put off for ever, nothing but the gate's word can wake.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gate_wakes_those_who_wait_also_after_it_was_gone() {
    let mut place = shared().place().await;
    let directory = tempfile::tempdir().unwrap();
    let mut redis = Redis::start(directory.path(), None, None).await.unwrap();
    place.redis_url = redis.url(0);
    place.environment.insert("REDIS_URL".to_owned(), redis.url(0));
    let app = TestApp::within(place, &[], limits(NEVER, 100));
    let tenant = app.tenant("10").await;
    for round in 0..2 {
        until("the app listens", async || listeners(&app.place).await == 1).await;
        let key = format!("submitted-{round}");
        let mut got = app.post(&tenant, &format!("got-{round}"), &decision("0.1")).await;
        while got.status == 503 {
            // It met a connection of before.
            got = app.post(&tenant, &format!("got-{round}"), &decision("0.1")).await;
        }
        let (posted, got, _) = futures::future::join3(
            post(&app, &tenant.key, &key, "wait=60"),
            get(&app, &tenant, got.run_id(), "wait=60"),
            async {
                waiting(&app, 2).await;
                app.work().await
            },
        )
        .await;
        ended(&posted, "wait=60");
        ended(&got, "wait=60");
        let port = redis.port();
        redis.child.kill().await;
        redis = Redis::start(directory.path(), None, Some(port)).await.unwrap();
    }
    // Every end is told of: a cancelled run's too.
    until("the app listens", async || listeners(&app.place).await == 1).await;
    let mut run = app.post(&tenant, "three", &decision("0.1")).await;
    while run.status == 503 {
        run = app.post(&tenant, "three", &decision("0.1")).await;
    }
    let run_id = run.run_id();
    let (answer, ()) = join(get(&app, &tenant, run_id, "wait=60"), async {
        waiting(&app, 1).await;
        let cancel = app.request(Method::POST, &format!("/v1/runs/{run_id}/cancel"));
        assert_eq!(app.send(cancel.bearer_auth(&tenant.key)).await.status, 200);
    })
    .await;
    assert_eq!((answer.status, &answer.body["status"]), (200, &json!("CANCELLED")), "{answer:?}");
    app.finish().await;
    redis.child.stop().await;
}

/// A server that forbids its users to publish costs them the hint alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gate_that_may_not_publish_settles_all_the_same() {
    let mut place = shared().place().await;
    let directory = tempfile::tempdir().unwrap();
    let redis = Redis::start(directory.path(), None, None).await.unwrap();
    place.redis_url = redis.url(0);
    place.environment.insert("REDIS_URL".to_owned(), redis.url(0));
    let app = TestApp::on(place, &[]);
    let tenant = app.tenant("1").await;
    let run_id = app.submit(&tenant, "one", "0.1").await;
    let _: String = app.place.redis(&["ACL", "SETUSER", "default", "resetchannels"]).await;
    let (answer, _) = join(get(&app, &tenant, run_id, "wait=60"), async {
        waiting(&app, 1).await;
        app.work().await
    })
    .await;
    ended(&answer, "wait=60");
    let holds: i64 = app.place.redis(&["HLEN", &format!("dpp:{{{}}}:holds", tenant.id)]).await;
    assert_eq!(holds, 0, "the gate has heard of the end");
    app.finish().await;
    redis.child.stop().await;
}

/// A worker that dies between the books and the gate, or a gate that is gone: the end is in the books.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_the_gate_was_not_told_of_wakes_within_a_look() {
    let app = TestApp::start().await;
    let tenant = app.tenant("10").await;
    let untold = app.submit(&tenant, "untold", "0.1").await;
    app.cx.crash.arm(CrashPoint::Settle, Fault::DiesBefore);
    let (answer, _) = join(get(&app, &tenant, untold, "wait=60"), async {
        waiting(&app, 1).await;
        app.work().await
    })
    .await;
    ended(&answer, "wait=60");

    // The same with no gate at all: runs are worked on, read and waited for without Redis.
    let gone = app.submit(&tenant, "gone", "0.1").await;
    let without = TestApp::on(app.place.clone(), &[("REDIS_URL", "redis://127.0.0.1:1/0")]);
    let (answer, _) = join(get(&without, &tenant, gone, "wait=60"), async {
        waiting(&without, 1).await;
        without.work().await
    })
    .await;
    ended(&answer, "wait=60");
    without.abandon();
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_up_frees_the_place_at_once_and_cancels_nothing() {
    let app = Arc::new(TestApp::start().await);
    let tenant = app.tenant("1").await;
    let run_id = app.submit(&tenant, "one", "0.1").await;
    let clients: Vec<_> = (0..2)
        .map(|number| {
            let (app, tenant) = (Arc::clone(&app), tenant.clone());
            tokio::spawn(async move {
                match number {
                    0 => get(&app, &tenant, run_id, "wait=60").await,
                    _ => post(&app, &tenant.key, "two", "wait=60").await,
                }
            })
        })
        .collect();
    waiting(&app, 2).await;
    let hung_up = Instant::now();
    clients.iter().for_each(tokio::task::JoinHandle::abort);
    waiting(&app, 0).await;
    assert!(hung_up.elapsed() < PATIENCE, "long before their time was up");
    join_all(clients).await;
    let app = Arc::into_inner(app).unwrap();
    assert_eq!(app.work().await, 2);
    assert_eq!(app.run(&tenant, run_id).await["status"], "COMPLETED");
    let two = app.post(&tenant, "two", &decision("0.1")).await;
    assert_eq!((two.header("idempotent-replayed"), &two.body["status"]), (Some("true"), &json!("COMPLETED")));
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_answers_those_who_wait_and_does_not_wait_for_them() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    let run_id = app.submit(&tenant, "one", "0.1").await;
    let mut server = Process::start(&app.place, &["serve"], &[("SHUTDOWN_GRACE_SEC", "30")]);
    let ops: Value = serde_json::from_str(&server.line("metrics and health are shown").await).unwrap();
    let ops = format!("http://{}/metrics", ops["address"].as_str().unwrap());
    let (url, client) = (server.api_url().await, reqwest::Client::new());
    let get = client.get(format!("{url}/v1/runs/{run_id}")).bearer_auth(&tenant.key);
    let post = client
        .post(format!("{url}/v1/runs"))
        .bearer_auth(&tenant.key)
        .header("Idempotency-Key", "two")
        .header("Content-Type", "application/json")
        .body(decision("0.1").to_string());
    let asked = [(get, 200), (post, 202)].map(|(request, status)| {
        let request = request.header("Prefer", "wait=60").timeout(Duration::from_secs(90)).send();
        (tokio::spawn(request), status)
    });
    until("both wait", async || {
        client.get(&ops).send().await.unwrap().text().await.unwrap().contains("\ndpp_waits 2\n")
    })
    .await;
    let stopped = Instant::now();
    server.signal("TERM");
    for (answer, status) in asked {
        let answer = answer.await.unwrap().unwrap();
        assert_eq!(answer.status(), status);
        assert_eq!(answer.headers().get("preference-applied"), None, "its time was cut short");
        let run: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert_eq!(run["status"], "QUEUED");
    }
    assert_eq!(server.ended().await, Some(0));
    assert!(stopped.elapsed() < Duration::from_secs(15), "{:?}", stopped.elapsed());
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_wait_at_once_on_eight_connections_and_each_gets_its_own() {
    const COUNT: usize = 200;
    let app = TestApp::start().await;
    let tenant = app.tenant("100").await;
    let keys: Vec<_> = (0..COUNT).map(|number| format!("key-{number}")).collect();
    let (answers, ()) =
        join(join_all(keys.iter().map(|key| post(&app, &tenant.key, key, "wait=60"))), async {
            waiting(&app, COUNT).await;
            let mut done = 0;
            while done < COUNT {
                done += app.work().await;
            }
        })
        .await;
    let mut runs: Vec<_> = answers.iter().map(|answer| answer.run_id().to_string()).collect();
    answers.iter().for_each(|answer| ended(answer, "wait=60"));
    runs.sort();
    runs.dedup();
    assert_eq!((runs.len(), app.cx.waits.count()), (COUNT, 0));
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_are_too_many_are_answered_at_once() {
    let place = shared().place().await;
    let app = TestApp::within(place, &[], limits(Duration::from_millis(100), 1));
    let tenant = app.tenant("1").await;
    let run_id = app.submit(&tenant, "one", "0.1").await;
    let (first, ()) = join(get(&app, &tenant, run_id, "wait=60"), async {
        waiting(&app, 1).await;
        let second = get(&app, &tenant, run_id, "wait=60").await;
        assert_eq!((second.status, second.header("preference-applied")), (200, None), "{second:?}");
        let third = post(&app, &tenant.key, "two", "wait=60").await;
        assert_eq!((third.status, third.header("preference-applied")), (202, None), "{third:?}");
        app.work().await;
    })
    .await;
    ended(&first, "wait=60");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_what_they_cannot_see() {
    let app = TestApp::start().await;
    let (owner, other) = (app.tenant("1").await, app.tenant("1").await);
    let run_id = app.submit(&owner, "one", "0.1").await;
    let begun = Instant::now();
    for run_id in [run_id, RunId::new()] {
        is_problem(&get(&app, &other, run_id, "wait=60").await, 404, "not-found");
    }
    let nonsense = app.request(Method::GET, "/v1/runs/none").bearer_auth(&other.key);
    is_problem(&app.send(nonsense.header("Prefer", "wait=60")).await, 404, "not-found");
    assert!(begun.elapsed() < Duration::from_secs(50));
    app.finish().await;
}

/// Found in review: a key that may buy and not look was shown the result of its own run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_may_only_buy_sees_what_its_run_cost_and_not_what_it_says() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    let body = json!({"label": "buyer", "scopes": ["runs:write"]});
    let request = app.request(Method::POST, "/v1/keys").bearer_auth(&tenant.key);
    let made = app.send(request.header("Content-Type", "application/json").body(body.to_string())).await;
    let buyer = made.body["key"].as_str().unwrap();
    let (waited, ()) = join(post(&app, buyer, "one", "wait=60"), async {
        waiting(&app, 1).await;
        app.work().await;
    })
    .await;
    assert_eq!(waited.header("preference-applied"), Some("wait=60"));
    let replayed = post(&app, buyer, "one", "").await;
    for (answer, status) in [(&waited, 200), (&replayed, 202)] {
        assert_eq!((answer.status, &answer.body["status"]), (status, &json!("COMPLETED")), "{answer:?}");
        assert_eq!(answer.body["actual_cost_usd"], crate::harness::DECISION_COST);
        for hidden in ["result_url", "result_url_expires_at", "result_sha256"] {
            assert_eq!(answer.body[hidden], Value::Null, "{answer:?}");
        }
    }
    let whole = post(&app, &tenant.key, "one", "").await;
    assert!(whole.body["result_url"].is_string() && whole.body["result_sha256"].is_string());
    app.finish().await;
}
