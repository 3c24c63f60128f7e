//! Each dependency refused and dead, against each path: an answer within two seconds, nothing charged, and
//! everything as before when it is back.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use dpp::flow;
use futures::future::{join_all, join3};
use reqwest::Method;
use serde_json::json;

use super::is_problem;
use crate::harness::{
    Answer, Limits, Tenant, TestApp, decision,
    line::{Line, State},
    services::{Place, shared},
    until,
};

/// The promise, and what a machine at other work may add to it.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
const SLACK: Duration = Duration::from_secs(2);

/// What can be asked for, and of what it needs an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    Nothing,
    Database,
    DatabaseAndRedis,
}

/// Method, path, and what it needs.
const PATHS: [(&str, &str, Needs); 17] = [
    ("GET", "/health", Needs::Nothing),
    ("GET", "/llms.txt", Needs::Nothing),
    ("GET", "/errors/not-found", Needs::Nothing),
    ("POST", "/v1/runs", Needs::DatabaseAndRedis),
    ("POST", "/v1/runs?again", Needs::Database),
    ("POST", "/v1/runs/{queued}/cancel", Needs::Database),
    ("GET", "/v1/runs/{done}", Needs::Database),
    ("HEAD", "/v1/runs/{done}", Needs::Database),
    ("GET", "/v1/runs/{done}?wait", Needs::Database),
    ("GET", "/v1/runs/{done}/result", Needs::Database),
    ("GET", "/v1/runs", Needs::Database),
    ("GET", "/v1/packs", Needs::Database),
    ("GET", "/v1/budget", Needs::Database),
    ("GET", "/v1/usage", Needs::Database),
    ("GET", "/v1/ledger", Needs::Database),
    ("GET", "/v1/keys", Needs::Database),
    ("POST", "/v1/keys", Needs::Database),
];

struct Lines {
    database: Line,
    redis: Line,
    sqs: Line,
    s3: Line,
}

impl Lines {
    /// Puts a line between a place and each of its services.
    fn between(place: &mut Place) -> Self {
        let mut line = |setting: &str| {
            let url = &place.environment[setting];
            let after = url.split_once("://").unwrap().1;
            let address = after.rsplit_once('@').map_or(after, |(_, address)| address);
            let address = address.split('/').next().unwrap();
            let line = Line::to(address.parse::<SocketAddr>().unwrap());
            let url = url.replace(address, &line.address().to_string());
            place.environment.insert(setting.to_owned(), url);
            line
        };
        Self {
            database: line("DATABASE_URL"),
            redis: line("REDIS_URL"),
            sqs: line("SQS_ENDPOINT_URL"),
            s3: line("S3_ENDPOINT_URL"),
        }
    }

    fn all(&self) -> [(&'static str, &Line); 4] {
        [("database", &self.database), ("redis", &self.redis), ("sqs", &self.sqs), ("s3", &self.s3)]
    }
}

struct Runs {
    done: String,
    queued: String,
}

async fn ask(app: &TestApp, key: &str, runs: &Runs, (method, path): (&str, &str), name: &str) -> Answer {
    let (path, more) = path.split_once('?').unwrap_or((path, ""));
    let path = path.replace("{done}", &runs.done).replace("{queued}", &runs.queued);
    let mut request = app.request(Method::from_bytes(method.as_bytes()).unwrap(), &path).bearer_auth(key);
    if more == "wait" {
        request = request.header("Prefer", "wait=30");
    }
    let body = match path.as_str() {
        "/v1/runs" if method == "POST" => decision("0.1"),
        _ => json!({}),
    };
    if method == "POST" {
        let key = if more == "again" { "done" } else { name };
        request = request.header("Idempotency-Key", key).header("Content-Type", "application/json");
        request = request.body(body.to_string());
    }
    app.send(request).await
}

/// Asks for everything while a service is in this state; how long the slowest answer took.
async fn while_it_is(
    app: &TestApp,
    tenant: &Tenant,
    runs: &Runs,
    (service, line): (&str, &Line),
    state: State,
) -> Duration {
    line.set(state);
    let name = format!("{service}-{state:?}");
    let asked = join_all(PATHS.map(async |(method, path, needs)| {
        let begun = Instant::now();
        let answer = ask(app, &tenant.key, runs, (method, path), &name).await;
        (method, path, needs, answer, begun.elapsed())
    }))
    .await;
    let mut wrong = Vec::new();
    let slowest = asked.iter().map(|asked| asked.4).max().unwrap();
    for (method, path, needs, answer, took) in asked {
        let down = match service {
            "database" => needs != Needs::Nothing,
            "redis" => needs == Needs::DatabaseAndRedis,
            _ => false,
        };
        let soon = match path {
            // Whoever asks may restart a process that does not answer.
            "/health" => Duration::from_secs(1),
            _ => ANSWERED_WITHIN + SLACK,
        };
        let (refused, slug) = (answer.header("retry-after") == Some("1"), answer.slug());
        let right = match down {
            true if method == "HEAD" => answer.status == 503 && refused,
            true => answer.status == 503 && refused && slug == "service-unavailable",
            false => answer.status < 400,
        };
        if !right || took > soon {
            wrong.push(format!("{method} {path} with {name}: {} {slug} after {took:.1?}", answer.status));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    until(&format!("/readyz says {name}"), async || {
        let begun = Instant::now();
        let ready = app.get("/readyz", "").await;
        assert!(begun.elapsed() < ANSWERED_WITHIN + SLACK, "{ready:?}");
        let services = ready.body["services"].as_object().unwrap();
        let down: Vec<_> = services.iter().filter(|(_, answer)| *answer != "up").collect();
        // Answers are remembered for a second.
        ready.status == 503 && down.len() == 1 && down[0].0 == service
    })
    .await;
    let health = app.get("/health", "").await;
    assert!(health.status == 200 && health.body["services"][service] != "up", "{health:?}");
    slowest
}

/// Until everything is answered as ever, and every service is up.
async fn comes_back(app: &TestApp, tenant: &Tenant, runs: &Runs, name: &str) -> Duration {
    let begun = Instant::now();
    until(&format!("{name} is over"), async || {
        let answers =
            join_all(PATHS.map(async |(method, path, _)| {
                ask(app, &tenant.key, runs, (method, path), name).await.status
            }));
        // What was asked for in vain is asked for again; what was cancelled has ended.
        answers.await.iter().all(|status| *status < 400 || *status == 409)
            && app.get("/readyz", "").await.status == 200
    })
    .await;
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_down_every_path_answers_within_two_seconds_and_recovers() {
    let mut place = shared().place().await;
    let lines = Lines::between(&mut place);
    let limits = Limits { answer_max: flow::ANSWER_MAX, ..Limits::default() };
    let app = TestApp::within(place, &[], limits);
    let tenant = app.tenant("100").await;
    let done = app.submit(&tenant, "done", "0.1").await.to_string();
    app.work().await;
    for (service, line) in lines.all() {
        for state in [State::Refused, State::Hangs] {
            // Whose it is, nobody remembers yet.
            let fresh = app.key_of(tenant.id).await;
            let name = format!("{service}-{state:?}");
            let queued = app.submit(&tenant, &format!("{name}-queued"), "0.1").await.to_string();
            let runs = Runs { done: done.clone(), queued };
            let slowest = while_it_is(&app, &fresh, &runs, (service, line), state).await;
            line.set(State::Up);
            let took = comes_back(&app, &tenant, &runs, &name).await;
            crate::harness::say(&format!(
                "{name}: answered within {slowest:.2?}, as before after {took:.1?}"
            ));
        }
    }
    app.finish().await;
}

/// What was accepted is accepted: the wait alone can fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_submit_whose_wait_loses_the_database_is_accepted_all_the_same() {
    let mut place = shared().place().await;
    let lines = Lines::between(&mut place);
    let app = TestApp::within(place, &[], Limits { answer_max: flow::ANSWER_MAX, ..Limits::default() });
    let tenant = app.tenant("1").await;
    let path = "/v1/runs";
    let submit = app
        .request(Method::POST, path)
        .bearer_auth(&tenant.key)
        .header("Idempotency-Key", "one")
        .header("Content-Type", "application/json")
        .header("Prefer", "wait=3")
        .body(decision("0.1").to_string());
    let get = async {
        until("one waits", async || app.cx.waits.count() == 1).await;
        let run_id = app.get(path, &tenant.key).await.body["data"][0]["run_id"].clone();
        let request = app.request(Method::GET, &format!("{path}/{}", run_id.as_str().unwrap()));
        app.send(request.bearer_auth(&tenant.key).header("Prefer", "wait=3")).await
    };
    let cut = async {
        until("two wait", async || app.cx.waits.count() == 2).await;
        lines.database.set(State::Refused);
    };
    let (posted, got, ()) = join3(app.send(submit), get, cut).await;
    assert_eq!((posted.status, &posted.body["status"]), (202, &json!("QUEUED")), "{posted:?}");
    assert_eq!(posted.header("preference-applied"), None);
    is_problem(&got, 503, "service-unavailable");
    lines.database.set(State::Up);
    until("it is back", async || app.get(path, &tenant.key).await.status == 200).await;
    app.finish().await;
}
