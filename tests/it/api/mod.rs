//! The API's doors: every path needs a key, every error is a problem, and nobody sees another's.

mod admin;
mod edge;
mod keys;
mod limits;
mod lists;
mod openapi;
mod outage;
mod past;
mod usage;
mod wait;

use dpp::api::problem::{Kind, Problem};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, TestApp, decision};

fn is_problem(answer: &Answer, status: u16, slug: &str) {
    assert_eq!((answer.status, answer.slug()), (status, slug), "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{answer:?}");
    for member in ["type", "title", "detail", "instance", "trace_id"] {
        assert!(answer.body[member].is_string(), "{member} in {answer:?}");
    }
    assert_eq!(answer.body["status"], status);
    let trace = answer.body["trace_id"].as_str().unwrap();
    assert!(answer.header("traceparent").unwrap().contains(trace));
    assert!(answer.header("x-request-id").is_some());
}

#[test]
fn the_problem_table() {
    let table: Vec<_> = Kind::ALL
        .iter()
        .map(|kind| format!("{} {} — {}", kind.status().as_u16(), kind.slug(), kind.title()))
        .collect();
    insta::assert_snapshot!(table.join("\n"));
    let body = Problem::new(Kind::NotFound, "Nothing.").body("https://dpp.example", "/v1/x", "t");
    assert_eq!(body["type"], "https://dpp.example/errors/not-found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_wrong_with_a_key_the_answer_is_the_same() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    let stranger = dpp::domain::api_key::ApiKey::generate();
    let mistyped = format!("{}0", &tenant.key[..tenant.key.len() - 1]);
    let paths = ["/v1/runs/x", "/v1/runs/x/result", "/v1/packs", "/v1/packs/decision", "/v1/budget"];
    let headers = [
        None,
        Some(String::new()),
        Some("Bearer".to_owned()),
        Some("Bearer ".to_owned()),
        Some(format!("Basic {}", tenant.key)),
        Some(format!("Bearer {mistyped}1")),
        Some(format!("Bearer {}", stranger.reveal())),
    ];
    let mut bodies = Vec::new();
    for path in paths {
        for header in &headers {
            let mut request = app.request(Method::GET, path);
            if let Some(header) = header {
                request = request.header("Authorization", header);
            }
            let answer = app.send(request).await;
            is_problem(&answer, 401, "unauthorized");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            bodies.push(answer.body["detail"].clone());
        }
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "one text");
    let post = app.send(app.request(Method::POST, "/v1/runs").body("{}")).await;
    is_problem(&post, 401, "unauthorized");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_and_what_is_anothers_are_the_same() {
    let app = TestApp::start().await;
    let (owner, other) = (app.tenant("1").await, app.tenant("1").await);
    let run_id = app.submit(&owner, "one", "1").await;
    let strip = |answer: &Answer| {
        let mut body = answer.body.clone();
        body["trace_id"] = Value::Null;
        body["instance"] = Value::Null;
        (answer.status, body)
    };
    for tail in ["", "/result"] {
        let mut answers = Vec::new();
        for id in [
            run_id.to_string(),
            dpp::domain::id::RunId::new().to_string(),
            "no-uuid".to_owned(),
            "0".to_owned(),
        ] {
            let answer = app.get(&format!("/v1/runs/{id}{tail}"), &other.key).await;
            is_problem(&answer, 404, "not-found");
            answers.push(strip(&answer));
        }
        answers.dedup();
        assert_eq!(answers.len(), 1, "{answers:?}");
    }
    let early = app.get(&format!("/v1/runs/{run_id}/result"), &owner.key).await;
    is_problem(&early, 409, "run-not-completed");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_that_no_handler_makes_are_problems_too() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    is_problem(&app.get("/nowhere", &tenant.key).await, 404, "not-found");
    is_problem(&app.get("/v1/runs/%FF%00", &tenant.key).await, 404, "not-found");
    let delete = app.send(app.request(Method::DELETE, "/v1/runs").bearer_auth(&tenant.key)).await;
    is_problem(&delete, 405, "method-not-allowed");
    assert_eq!(delete.header("allow"), Some("GET, HEAD, POST, OPTIONS"));
    let big = app
        .request(Method::POST, "/v1/runs")
        .bearer_auth(&tenant.key)
        .header("Idempotency-Key", "k")
        .header("Content-Type", "application/json")
        .body(vec![b' '; 256 * 1024 + 1]);
    is_problem(&app.send(big).await, 413, "payload-too-large");
    let form = app
        .request(Method::POST, "/v1/runs")
        .bearer_auth(&tenant.key)
        .header("Idempotency-Key", "k")
        .header("Content-Type", "application/x-www-form-urlencoded")
        .body("a=b");
    is_problem(&app.send(form).await, 415, "unsupported-media-type");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_submit_that_is_wrong_says_where_and_moves_nothing() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    let with = |change: fn(&mut Value)| {
        let mut body = decision("1");
        change(&mut body);
        body
    };
    let cases: Vec<(Value, u16, &str, &str)> = vec![
        (
            with(|b| drop(b.as_object_mut().unwrap().remove("pack_type"))),
            400,
            "invalid-request",
            "/pack_type",
        ),
        (with(|b| b["pack_type"] = json!(1)), 400, "invalid-request", "/pack_type"),
        (with(|b| b["inputs"] = json!([])), 400, "invalid-request", "/inputs"),
        (with(|b| b["timebox_sec"] = json!(0)), 400, "invalid-request", "/timebox_sec"),
        (with(|b| b["timebox_sec"] = json!(1.5)), 400, "invalid-request", "/timebox_sec"),
        (with(|b| b["timebox_sec"] = json!(1_000_000)), 400, "invalid-request", "/timebox_sec"),
        (with(|b| b["metadata"] = json!({"k": 1})), 400, "invalid-request", "/metadata"),
        (with(|b| b["max_cost"] = json!("1")), 400, "invalid-request", "/max_cost"),
        (with(|b| b["a/b~c"] = json!("1")), 400, "invalid-request", "/a~1b~0c"),
        (
            with(|b| drop(b.as_object_mut().unwrap().remove("max_cost_usd"))),
            400,
            "invalid-request",
            "/max_cost_usd",
        ),
        (with(|b| b["max_cost_usd"] = json!(1)), 400, "invalid-amount", "/max_cost_usd"),
        (with(|b| b["max_cost_usd"] = json!("-1")), 400, "invalid-amount", "/max_cost_usd"),
        (with(|b| b["max_cost_usd"] = json!("NaN")), 400, "invalid-amount", "/max_cost_usd"),
        (with(|b| b["max_cost_usd"] = json!("1.00001")), 400, "invalid-amount", "/max_cost_usd"),
        (with(|b| b["max_cost_usd"] = json!("0.0049")), 422, "max-cost-too-low", "/max_cost_usd"),
        (with(|b| b["max_cost_usd"] = json!("0.0119")), 422, "max-cost-too-low", "/max_cost_usd"),
        (with(|b| b["max_cost_usd"] = json!("10000.0001")), 422, "max-cost-exceeds-plan", "/max_cost_usd"),
        (
            with(|b| b["inputs"]["options"][0]["scores"]["price"] = json!("x")),
            422,
            "invalid-inputs",
            "/inputs/options/0/scores/price",
        ),
        (with(|b| b["pack_type"] = json!("poetry")), 422, "unknown-pack", ""),
        // Counted in characters, as every other length.
        (with(|b| b["pack_type"] = json!("é".repeat(64))), 422, "unknown-pack", ""),
        (with(|b| b["pack_type"] = json!("é".repeat(65))), 400, "invalid-request", "/pack_type"),
        (with(|b| b["inputs"] = json!({"question": "Which?"})), 422, "pack-unavailable", ""),
        (with(|b| b["max_cost_usd"] = json!("1.0001")), 422, "budget-exceeded", ""),
        (
            json!({"pack_type": "url", "max_cost_usd": "1", "inputs": {"url": "http://169.254.169.254/"}}),
            422,
            "invalid-inputs",
            "/inputs/url",
        ),
    ];
    for (body, status, slug, pointer) in cases {
        let answer = app.post(&tenant, "same-key", &body).await;
        is_problem(&answer, status, slug);
        let pointers: Vec<_> = answer.body["errors"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|error| error["pointer"].clone())
            .collect();
        assert!(pointer.is_empty() || pointers.contains(&json!(pointer)), "{pointer} in {answer:?}");
    }
    for text in ["", "{", "[]", "null", "{\"pack_type\":\"a\",\"pack_type\":\"b\"}"] {
        let request = app
            .request(Method::POST, "/v1/runs")
            .bearer_auth(&tenant.key)
            .header("Idempotency-Key", "same-key")
            .header("Content-Type", "application/json")
            .body(text);
        is_problem(&app.send(request).await, 400, "invalid-request");
    }
    let request = app.request(Method::POST, "/v1/runs").bearer_auth(&tenant.key).body("{}");
    is_problem(&app.send(request).await, 400, "idempotency-key-required");
    let request = app
        .request(Method::POST, "/v1/runs")
        .bearer_auth(&tenant.key)
        .header("Idempotency-Key", "a b")
        .body("{}");
    is_problem(&app.send(request).await, 400, "idempotency-key-invalid");

    let budget = app.get("/v1/budget", &tenant.key).await.body;
    assert_eq!((&budget["available_usd"], &budget["held_usd"]), (&json!("1.0000"), &json!("0.0000")));
    // After all those refusals the key is unused.
    app.submit(&tenant, "same-key", "1").await;
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strings_with_nul_and_hostile_inputs_are_kept_to_the_letter() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    let mut body = decision("1");
    body["metadata"] = json!({"note": "a\u{0}b", "quote": "'; DROP TABLE runs; --", "emoji": "😀"});
    let answer = app.post(&tenant, "nul", &body).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(app.run(&tenant, answer.run_id()).await["metadata"], body["metadata"]);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packs_show_their_terms_and_health_its_services() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    let packs = app.get("/v1/packs", &tenant.key).await.body;
    let names: Vec<_> =
        packs["data"].as_array().unwrap().iter().map(|pack| pack["pack_type"].clone()).collect();
    assert_eq!(names, ["decision", "url", "scripted"], "the last is the harness's own");
    let pack = app.get("/v1/packs/url", &tenant.key).await.body;
    assert_eq!(pack, packs["data"][1]);
    assert_eq!(pack["prices"]["base_usd"], "0.0050");
    assert_eq!(pack["input_schema"]["type"], "object");
    is_problem(&app.get("/v1/packs/none", &tenant.key).await, 404, "not-found");
    for path in ["/health", "/readyz"] {
        let health = app.get(path, "").await;
        assert_eq!(health.status, 200, "{health:?}");
        for service in ["api", "database", "redis", "s3", "sqs"] {
            assert_eq!(health.body["services"][service], "up", "{health:?}");
        }
    }
    let page = app.get("/errors/budget-exceeded", "").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    app.finish().await;
}
