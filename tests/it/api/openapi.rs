//! The document: complete, true, and shown without anybody's help. That every answer is in it, the harness
//! checks ([`crate::harness::contract`]); a schema validator and schemathesis do the rest (`make contract`).

use std::{collections::BTreeSet, io::Read as _};

use dpp::{
    api::{openapi, problem::Kind},
    domain::id::RunId,
};
use flate2::read::GzDecoder;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    admin,
    edge::{filled, methods, paths, send},
    is_problem,
};
use crate::harness::{Answer, TestApp, contract, contract::Operation, process};

#[test]
fn the_document() {
    insta::assert_snapshot!(openapi::text());
}

/// What to do when this fails: a new path goes into `routes.rs`, and a row for it into `operations.rs`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_has_an_operation_and_every_operation_a_route() {
    let app = admin::start().await;
    let mut routes = BTreeSet::new();
    for path in paths().into_iter().chain(admin::paths()) {
        // HEAD and OPTIONS follow from the others.
        let methods = methods(&app, &filled(&path, RunId::new())).await;
        let methods = methods.into_iter().filter(|method| !["HEAD", "OPTIONS"].contains(&method.as_str()));
        routes.extend(methods.map(|method| (path.clone(), method)));
    }
    let operations: BTreeSet<_> =
        Operation::all().into_iter().map(|operation| (operation.path, operation.method)).collect();
    let missing: Vec<_> = routes.difference(&operations).collect();
    assert!(missing.is_empty(), "src/api/operations.rs lacks a row for {missing:?}");
    let surplus: Vec<_> = operations.difference(&routes).collect();
    assert!(surplus.is_empty(), "src/api/routes.rs has no route for {surplus:?}");
    app.finish().await;
}

#[test]
fn every_problem_is_some_operations_and_every_name_is_its_own() {
    let operations = Operation::all();
    let named: BTreeSet<_> = operations.iter().flat_map(Operation::problems).collect();
    let missing: Vec<_> = Kind::ALL
        .iter()
        .map(|kind| kind.slug())
        // What no operation answers: the introduction says when.
        .filter(|slug| *slug != "method-not-allowed" && !named.contains(*slug))
        .collect();
    assert!(missing.is_empty(), "no row of src/api/operations.rs names these problems: {missing:?}");
    assert!(openapi::document()["info"]["description"].as_str().unwrap().contains("method-not-allowed"));
    let ids: BTreeSet<_> =
        operations.iter().map(|operation| operation.object["operationId"].to_string()).collect();
    assert_eq!(ids.len(), operations.len());
    for id in ids {
        assert!(id.contains('_') && id == id.to_lowercase(), "<verb>_<resource>: {id}");
    }
}

/// What the outside world was promised; the document may say more, and never less.
#[test]
fn the_document_keeps_what_was_promised() {
    const ROWS: [(&str, &str, &[&str]); 21] = [
        ("POST", "/v1/runs", &["202"]),
        ("GET", "/v1/runs/{run_id}", &["200", "404", "410"]),
        ("GET", "/v1/runs/{run_id}/result", &["303", "409"]),
        ("GET", "/v1/runs", &["200"]),
        ("POST", "/v1/runs/{run_id}/cancel", &["200", "202", "409"]),
        ("GET", "/v1/usage", &["200"]),
        ("GET", "/v1/budget", &["200"]),
        ("GET", "/v1/ledger", &["200"]),
        ("GET", "/v1/packs", &["200"]),
        ("GET", "/v1/packs/{pack_type}", &["200", "404"]),
        ("POST", "/v1/keys", &["201"]),
        ("GET", "/v1/keys", &["200"]),
        ("POST", "/v1/keys/{key_id}/rotate", &["201"]),
        ("DELETE", "/v1/keys/{key_id}", &["204"]),
        ("GET", "/health", &["200"]),
        ("GET", "/readyz", &["200", "503"]),
        ("GET", "/docs", &["200"]),
        ("GET", "/redoc", &["200"]),
        ("GET", "/openapi.json", &["200"]),
        ("GET", "/errors/{slug}", &["200", "404"]),
        ("GET", "/llms.txt", &["200"]),
    ];
    const SLUGS: [(u16, &[&str]); 12] = [
        (
            400,
            &[
                "invalid-request",
                "idempotency-key-required",
                "idempotency-key-invalid",
                "invalid-cursor",
                "invalid-amount",
            ],
        ),
        (401, &["unauthorized"]),
        (403, &["tenant-suspended", "pack-not-allowed"]),
        (404, &["not-found"]),
        (405, &["method-not-allowed"]),
        (409, &["idempotency-key-reused", "run-not-completed", "run-not-cancellable"]),
        (410, &["run-expired"]),
        (413, &["payload-too-large"]),
        (415, &["unsupported-media-type"]),
        (
            422,
            &[
                "budget-exceeded",
                "max-cost-exceeds-plan",
                "max-cost-too-low",
                "invalid-inputs",
                "unknown-pack",
                "pack-unavailable",
            ],
        ),
        (500, &["internal-error"]),
        (503, &["service-unavailable"]),
    ];
    let operations = Operation::all();
    for (method, path, statuses) in ROWS {
        let operation = operations
            .iter()
            .find(|operation| (operation.method.as_str(), operation.path.as_str()) == (method, path));
        let operation = operation.unwrap_or_else(|| panic!("{method} {path}"));
        for status in statuses {
            assert!(operation.object["responses"].get(status).is_some(), "{status} of {method} {path}");
        }
    }
    for (status, slugs) in SLUGS {
        for slug in slugs {
            let kind = Kind::ALL.iter().find(|kind| kind.slug() == *slug);
            assert_eq!(kind.map(|kind| kind.status().as_u16()), Some(status), "{slug}");
        }
    }
}

#[test]
fn every_example_is_of_its_shape() {
    let document = openapi::document();
    let mut judged = 0;
    let mut places = vec![document];
    while let Some(value) = places.pop() {
        if let (Some(schema), Some(examples)) = (value.get("schema"), value["examples"].as_object()) {
            for name in examples.keys() {
                let example = &document["components"]["examples"][name]["value"];
                contract::judge(schema, example).unwrap_or_else(|wrong| panic!("{name}: {wrong}: {example}"));
                judged += 1;
            }
        }
        places.extend(value.as_object().into_iter().flat_map(|members| members.values()));
        places.extend(value.as_array().into_iter().flatten());
    }
    assert!(judged > Kind::ALL.len(), "{judged}");
}

/// Whatever is wrong with a key, all operations that need one answer the same; and what they are asked beyond
/// what the document says is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_needs_the_key_that_it_says_and_takes_no_unknown_field() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    let run_id = app.submit(&tenant, "one", "1").await;
    let strip = |answer: &Answer, path: &str| {
        let trace = answer.body["trace_id"].as_str().unwrap();
        answer.body.to_string().replace(path, "PATH").replace(trace, "TRACE")
    };
    let revoked = app.key_of(tenant.id).await.key;
    let listed = app.get("/v1/keys?limit=1", &tenant.key).await.body;
    let path = format!("/v1/keys/{}", listed["data"][0]["key_id"].as_str().unwrap());
    assert_eq!(send(&app, "DELETE", &path, Some(&tenant.key), &[]).await.status, 204);
    let stranger = dpp::domain::api_key::ApiKey::generate();
    let mistyped = format!("{}x", &tenant.key[..tenant.key.len() - 1]);
    let wrong = [None, Some(""), Some("dpp_live_"), Some(&mistyped), Some(&revoked), Some(stranger.reveal())];
    let mut refusals = BTreeSet::new();
    for operation in Operation::all() {
        let path = filled(&operation.path, run_id);
        let asked = async |key: Option<&str>, path: &str| send(&app, &operation.method, path, key, &[]).await;
        if path.starts_with("/v1/admin/") {
            // No key opens these: `admin` has the same for their token.
            assert_eq!(operation.scope(), None);
            continue;
        }
        if operation.scope().is_none() {
            assert!(!path.starts_with("/v1/"), "{path} needs a key");
            assert_ne!(asked(None, &path).await.status, 401, "{path} is for everybody");
            continue;
        }
        for key in wrong {
            let answer = asked(key, &path).await;
            is_problem(&answer, 401, "unauthorized");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            refusals.insert(strip(&answer, &path));
        }
        let unknown = asked(Some(&tenant.key), &format!("{path}?nobody_knows=this")).await;
        is_problem(&unknown, 400, "invalid-request");
        assert_eq!(unknown.body["errors"][0]["pointer"], "/nobody_knows", "{unknown:?}");
        if operation.method == "POST" {
            let ask = |form: &str, body: Vec<u8>| {
                let request = app.request(Method::POST, &path).bearer_auth(&tenant.key);
                request.header("Idempotency-Key", "bodies").header("Content-Type", form).body(body)
            };
            let large = app.send(ask("application/json", vec![b' '; 256 * 1024 + 1])).await;
            is_problem(&large, 413, "payload-too-large");
            let unknown = app.send(ask("application/json", b"{\"nobody_knows\": 1}".to_vec())).await;
            is_problem(&unknown, 400, "invalid-request");
            if operation.object.get("requestBody").is_some() {
                is_problem(&app.send(ask("text/plain", b"{}".to_vec())).await, 415, "unsupported-media-type");
                let coded = ask("application/json", b"{}".to_vec()).header("Content-Encoding", "gzip");
                is_problem(&app.send(coded).await, 415, "unsupported-media-type");
            }
        }
    }
    assert_eq!(refusals.len(), 1, "byte for byte: {refusals:?}");
    app.finish().await;
}

/// The examples of requests do what they say, and a whole number may be written as any JSON number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_examples_work() {
    let app = TestApp::start().await;
    let tenant = app.tenant("3").await;
    let example = |name: &str| openapi::document()["components"]["examples"][name]["value"].clone();
    let mut submit = example("SubmitRun");
    assert_eq!(app.post(&tenant, "one", &submit).await.status, 202);
    submit["timebox_sec"] = json!(60.0);
    let again = app.post(&tenant, "one", &submit).await;
    assert_eq!((again.status, again.header("idempotent-replayed")), (202, Some("true")), "{again:?}");
    submit["timebox_sec"] = json!(60.5);
    is_problem(&app.post(&tenant, "two", &submit).await, 400, "invalid-request");
    let post = async |path: &str, body: &Value| {
        let request = app.request(Method::POST, path).bearer_auth(&tenant.key);
        app.send(request.header("Content-Type", "application/json").body(body.to_string())).await
    };
    let made = post("/v1/keys", &example("CreateKey")).await;
    assert_eq!(made.status, 201, "{made:?}");
    let path = format!("/v1/keys/{}/rotate", made.body["key_id"].as_str().unwrap());
    is_problem(&post(&path, &json!({"grace_sec": 0.5})).await, 400, "invalid-request");
    assert_eq!(post(&path, &json!({"grace_sec": 3600.0})).await.status, 201);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_document_and_its_pages_need_nobody_else() {
    let app = TestApp::start().await;
    let served = app.get("/openapi.json", "").await;
    assert_eq!((served.status, served.header("content-type")), (200, Some("application/json")));
    assert_eq!(&served.body, openapi::document());
    let (code, printed, errors) = process::dpp(&app.place, &["openapi"]).await;
    assert_eq!((code, errors.as_str()), (0, ""));
    assert_eq!(printed, openapi::text());
    let raw = reqwest::Client::builder().no_proxy().no_gzip().build().unwrap();
    for path in ["/docs", "/redoc"] {
        let page = app.get(path, "").await;
        assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
        let policy = page.header("content-security-policy").unwrap();
        assert!(policy.contains("script-src 'self';") && policy.contains("connect-src 'self';"), "{policy}");
        let html = page.body.as_str().unwrap();
        assert!(!html.contains("//"), "nothing of another origin: {html}");
        let mut parts = Vec::new();
        for attribute in ["href=\"", "src=\""] {
            parts.extend(html.split(attribute).skip(1).map(|rest| rest.split('"').next().unwrap()));
        }
        let parts: Vec<_> = parts.into_iter().filter(|part| *part != "data:,").collect();
        assert!(parts.len() >= 4, "{parts:?}");
        for part in parts {
            let path = format!("/{part}");
            let asset = app.get(&path, "").await;
            let form = match part.rsplit('.').next().unwrap() {
                "js" => "text/javascript; charset=utf-8",
                "css" => "text/css; charset=utf-8",
                _ => "application/json",
            };
            assert_eq!((asset.status, asset.header("content-type")), (200, Some(form)), "{part}");
            // The same bytes, smaller; and not again while they are the same.
            let gzip = raw.get(format!("{}{path}", app.url)).header("Accept-Encoding", "br;q=1, GZIP;q=0.8");
            let gzip = gzip.send().await.unwrap();
            assert_eq!(gzip.headers()["content-encoding"], "gzip");
            let mut text = String::new();
            GzDecoder::new(&*gzip.bytes().await.unwrap()).read_to_string(&mut text).unwrap();
            assert_eq!(asset.body, serde_json::from_str(&text).unwrap_or(Value::String(text)));
            let plain = send(&app, "GET", &path, None, &[("Accept-Encoding", "gzip;q=0, br")]).await;
            assert_eq!((plain.header("content-encoding"), &plain.body), (None, &asset.body));
            let etag = asset.header("etag").unwrap();
            for known in [etag, "*", &format!("\"0\", {etag}"), etag.strip_prefix("W/").unwrap()] {
                let again = send(&app, "GET", &path, None, &[("If-None-Match", known)]).await;
                assert_eq!((again.status, again.header("etag")), (304, Some(etag)), "{known}");
            }
            for other in ["\"0\"", "\"", "", "W/"] {
                assert_eq!(send(&app, "GET", &path, None, &[("If-None-Match", other)]).await.status, 200);
            }
        }
    }
    is_problem(&app.get("/assets/docs.html", "").await, 404, "not-found");
    app.finish().await;
}
