//! The edge: every path's methods, what browsers are told, and clients that are slow or send too much.

use std::{collections::BTreeMap, time::Duration};

use dpp::{api::problem::Kind, config::Settings, domain::id::RunId};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::is_problem;
use crate::harness::{Answer, Limits, Tenant, TestApp, services::shared, until};

/// Every path of the API, as `routes.rs` has them.
pub fn paths() -> Vec<String> {
    let routes = include_str!("../../../src/api/routes.rs");
    let api = routes.split("pub(super) fn ops").next().unwrap();
    let paths: Vec<_> =
        api.split("(\"/").skip(1).map(|rest| format!("/{}", rest.split_once('"').unwrap().0)).collect();
    assert!(paths.len() > 10 && paths.contains(&"/v1/runs/{run_id}/result".to_owned()), "{paths:?}");
    paths
}

/// A path with its parameters filled in.
pub fn filled(path: &str, run_id: RunId) -> String {
    path.replace("{run_id}", &run_id.to_string())
        .replace("{key_id}", &run_id.to_string())
        .replace("{pack_type}", "decision")
        .replace("{slug}", "not-found")
        .replace("{asset}", "docs.js")
        .replace("{tenant_id}", &run_id.to_string())
        .replace("{plan}", "growth")
}

pub async fn send(
    app: &TestApp,
    method: &str,
    path: &str,
    key: Option<&str>,
    headers: &[(&str, &str)],
) -> Answer {
    let mut request = app.request(Method::from_bytes(method.as_bytes()).unwrap(), path);
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    app.send(request).await
}

/// The methods of a path.
pub async fn methods(app: &TestApp, path: &str) -> Vec<String> {
    let answer = send(app, "OPTIONS", path, None, &[]).await;
    assert_eq!((answer.status, &answer.body), (204, &json!("")), "{answer:?}");
    answer.header("allow").unwrap().split(", ").map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_path_says_its_methods_and_refuses_the_others() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    for path in paths() {
        let path = filled(&path, RunId::new());
        let allowed = methods(&app, &path).await;
        assert!(allowed.contains(&"OPTIONS".to_owned()), "{path}: {allowed:?}");
        assert_eq!(
            allowed.contains(&"GET".to_owned()),
            allowed.contains(&"HEAD".to_owned()),
            "HEAD goes wherever GET goes: {path}"
        );
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PURGE"] {
            if allowed.iter().any(|allowed| allowed == method) {
                continue;
            }
            let answer = send(&app, method, &path, Some(&tenant.key), &[]).await;
            if method == "HEAD" {
                assert_eq!((answer.status, &answer.body), (405, &json!("")));
            } else {
                is_problem(&answer, 405, "method-not-allowed");
            }
            assert_eq!(answer.header("allow"), Some(allowed.join(", ").as_str()), "{method} {path}");
        }
    }
    is_problem(&send(&app, "OPTIONS", "/nowhere", None, &[]).await, 404, "not-found");
    app.finish().await;
}

/// Whatever is bought or shown: not without a key, and not another tenant's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_path_of_a_tenant_needs_its_key_and_shows_nobody_elses() {
    let app = TestApp::start().await;
    let (owner, other) = (app.tenant("1").await, app.tenant("1").await);
    let theirs = app.submit(&owner, "one", "1").await;
    let never = RunId::new();
    let keys = app.get("/v1/keys", &owner.key).await.body;
    let their_key: RunId = keys["data"][0]["key_id"].as_str().unwrap().parse().unwrap();
    let run = theirs;
    let mut hidden = 0;
    for path in paths() {
        let theirs = if path.contains("{key_id}") { their_key } else { run };
        let filled_path = filled(&path, theirs);
        for method in methods(&app, &filled_path).await {
            if method == "OPTIONS" {
                continue;
            }
            let anonymous = send(&app, &method, &filled_path, None, &[]).await;
            if !path.starts_with("/v1/") {
                assert_ne!(anonymous.status, 401, "{path} is for everybody");
                continue;
            }
            assert_eq!((anonymous.status, anonymous.header("www-authenticate")), (401, Some("Bearer")));
            if method == "HEAD" {
                let form = anonymous.header("content-type");
                assert_eq!((form, &anonymous.body), (Some("application/problem+json"), &json!("")));
                continue;
            }
            is_problem(&anonymous, 401, "unauthorized");
            // An id in the path: theirs and one that never was are the same, but for the ids themselves.
            if path.contains("_id}") {
                let strip = |answer: &Answer, run_id: RunId| {
                    let trace = answer.body["trace_id"].as_str().unwrap();
                    answer.body.to_string().replace(&run_id.to_string(), "ID").replace(trace, "TRACE")
                };
                let seen = send(&app, &method, &filled_path, Some(&other.key), &[]).await;
                let unknown = send(&app, &method, &filled(&path, never), Some(&other.key), &[]).await;
                is_problem(&seen, 404, "not-found");
                assert_eq!(strip(&seen, theirs), strip(&unknown, never), "{method} {path}");
                let names = |answer: &Answer| {
                    answer.headers.keys().map(ToString::to_string).collect::<std::collections::BTreeSet<_>>()
                };
                assert_eq!(names(&seen), names(&unknown));
                hidden += 1;
            }
            // A list or a sum of the other's holds nothing of theirs.
            let seen = send(&app, &method, &filled_path, Some(&other.key), &[]).await;
            for secret in [theirs.to_string(), owner.id.to_string()] {
                let shown = seen.body.to_string().replace(&filled_path, "");
                assert!(!shown.contains(&secret), "{method} {path}: {seen:?}");
            }
        }
    }
    assert!(hidden >= 4, "run, result, key and its successor, at least");
    assert_eq!(app.get("/v1/budget", &owner.key).await.status, 200, "nobody has revoked it");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn head_is_get_without_its_body() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    let run_id = app.submit(&tenant, "one", "1").await;
    for path in paths() {
        let path = filled(&path, run_id);
        if !methods(&app, &path).await.contains(&"GET".to_owned()) {
            continue;
        }
        let get = send(&app, "GET", &path, Some(&tenant.key), &[("X-Request-ID", "r")]).await;
        let head = send(&app, "HEAD", &path, Some(&tenant.key), &[("X-Request-ID", "r")]).await;
        assert_eq!((get.status, &head.body), (head.status, &json!("")), "{path}");
        let headers = |answer: &Answer| {
            let headers =
                answer.headers.iter().filter(|(name, _)| !["date", "traceparent"].contains(&name.as_str()));
            headers.map(|(name, value)| (name.to_string(), value.clone())).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(headers(&get), headers(&head), "{path}");
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_is_guarded_and_not_stored() {
    let app = TestApp::start().await;
    let tenant = app.tenant("2").await;
    let run_id = app.submit(&tenant, "one", "1").await;
    let mut paths = paths();
    paths.extend(["/nowhere", "/v1/nowhere", "/errors/nothing"].map(str::to_owned));
    for path in paths {
        for key in [None, Some(tenant.key.as_str())] {
            let answer = send(&app, "GET", &filled(&path, run_id), key, &[]).await;
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{answer:?}");
            assert_eq!(answer.header("referrer-policy"), Some("no-referrer"), "{answer:?}");
            assert_eq!(answer.header("x-frame-options"), Some("DENY"), "{answer:?}");
            let policy = answer.header("content-security-policy").unwrap();
            assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
            let stored = if answer.header("etag").is_some() { "no-cache" } else { "no-store" };
            assert_eq!(answer.header("cache-control"), Some(stored), "{path}: {answer:?}");
        }
    }
    let accepted = app.post(&tenant, "two", &crate::harness::decision("0.5")).await;
    assert_eq!((accepted.status, accepted.header("cache-control")), (202, Some("no-store")));
    // However its path is written.
    let request = format!("GET /%761/budget HTTP/1.0\r\nAuthorization: Bearer {}\r\n\r\n", tenant.key);
    let answer = raw(&app, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.0 200") && answer.contains("cache-control: no-store"), "{answer}");
    app.finish().await;
}

async fn preflight(app: &TestApp, origin: &str) -> Answer {
    let headers = [
        ("Origin", origin),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "authorization,content-type,idempotency-key"),
    ];
    let answer = send(app, "OPTIONS", "/v1/runs", None, &headers).await;
    assert_eq!(answer.status, 204, "{answer:?}");
    assert!(answer.headers.get_all("vary").iter().any(|vary| vary == "Origin"), "{answer:?}");
    assert_eq!(answer.header("access-control-allow-credentials"), None);
    answer
}

async fn may_call(app: &TestApp, tenant: &Tenant, origin: &str) -> bool {
    let before = preflight(app, origin).await;
    let may = before.header("access-control-allow-origin");
    assert!(may.is_none() || may == Some(origin), "never *, never another: {before:?}");
    if may.is_some() {
        assert_eq!(before.header("access-control-allow-methods"), Some("GET, HEAD, POST, OPTIONS"));
        let headers = before.header("access-control-allow-headers").unwrap().to_lowercase();
        for name in ["authorization", "content-type", "idempotency-key"] {
            assert!(headers.contains(name), "{headers}");
        }
    }
    // Answers and refusals alike: a page must be able to read why.
    for (path, key) in [("/v1/budget", Some(tenant.key.as_str())), ("/v1/budget", None), ("/nowhere", None)] {
        let answer = send(app, "GET", path, key, &[("Origin", origin)]).await;
        assert_eq!(answer.header("access-control-allow-origin"), may, "{answer:?}");
        assert_eq!(answer.header("access-control-allow-credentials"), None);
        assert_eq!(answer.header("access-control-expose-headers").is_some(), may.is_some());
        assert!(answer.headers.get_all("vary").iter().any(|vary| vary == "Origin"), "{answer:?}");
    }
    may.is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_the_origins_that_are_named_may_call_and_no_others() {
    const NAMED: &str = "https://app.example.com, http://intra.example.com:8080";
    for (environment, localhost) in [("dev", true), ("staging", false)] {
        let app = TestApp::with(&[("CORS_ALLOWED_ORIGINS", NAMED), ("DPP_ENV", environment)]).await;
        let tenant = app.tenant("1").await;
        for origin in ["https://app.example.com", "http://intra.example.com:8080"] {
            assert!(may_call(&app, &tenant, origin).await, "{origin}");
        }
        for origin in [
            "http://app.example.com",
            "https://app.example.com:8443",
            "https://app.example.com.evil.example",
            "https://evil.example/https://app.example.com",
            "https://APP.example.com",
            "https://app.example.com/",
            "null",
            "*",
            "",
            "http://localhost.evil.example",
            "http://127.0.0.1.evil.example:3000",
            "file://localhost",
            "http://localhost:3000/",
            "http://user@localhost:3000",
        ] {
            assert!(!may_call(&app, &tenant, origin).await, "{origin}");
        }
        for origin in
            ["http://localhost:3000", "http://127.0.0.1:5173", "http://[::1]:8080", "https://localhost"]
        {
            assert_eq!(may_call(&app, &tenant, origin).await, localhost, "{origin} in {environment}");
        }
        // Without a page nothing is said, and two origins are none.
        let plain = app.get("/v1/budget", &tenant.key).await;
        assert_eq!(plain.header("access-control-allow-origin"), None);
        let named = ("Origin", "https://app.example.com");
        let both = send(&app, "GET", "/v1/budget", Some(&tenant.key), &[named, named]).await;
        assert_eq!(both.header("access-control-allow-origin"), None);
        app.finish().await;
    }
}

#[test]
fn an_origin_that_is_none_stops_the_start() {
    let with = |origins: &str, environment: &str| {
        let environment = [("CORS_ALLOWED_ORIGINS", origins), ("DPP_ENV", environment)];
        Settings::resolve(&environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
            .map(|settings| settings.origins().listed)
            .map_err(|error| error.to_string())
    };
    assert_eq!(with("", "production").unwrap(), Vec::<String>::new());
    assert_eq!(with(" https://a.example , https://b.example:1", "production").unwrap().len(), 2);
    for wrong in [
        "*",
        "https://*.example.com",
        "app.example.com",
        "https://app.example.com/",
        "https://app.example.com/path",
        "https://app.example.com:443",
        "https://App.example.com",
        "https://user@app.example.com",
        "https://a.example,*",
        "https://a.example,,https://b.example",
        "ftp://a.example",
        "null",
    ] {
        let error = with(wrong, "production").unwrap_err();
        assert!(
            error.contains("CORS_ALLOWED_ORIGINS") && error.contains("https://app.example.com"),
            "{error}"
        );
    }
    for local in [
        "http://localhost:3000",
        "http://127.0.0.1",
        "http://[::1]:80",
        "https://a.example,http://x.localhost",
    ] {
        if !local.ends_with(":80") {
            assert!(with(local, "dev").is_ok(), "{local}");
        }
        let error = with(local, "production").unwrap_err();
        assert!(error.contains("CORS_ALLOWED_ORIGINS"), "{error}");
    }
}

/// Sends bytes and reads to the end of the connection.
async fn raw(app: &TestApp, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(app.url.strip_prefix("http://").unwrap()).await.unwrap();
    // A server that has heard enough may close before it has read all.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_slow_or_sends_too_much_is_let_go() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    let head = format!(
        "POST /v1/runs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nIdempotency-Key: slow\r\nContent-Type: application/json\r\n",
        tenant.key
    );
    // All at once: each ends with an answer and a closed connection, without the client's doing anything.
    let slow_head = raw(&app, b"GET /health HTTP/1.1\r\nHost: x\r\n");
    let body = format!("{head}Content-Length: 100\r\n\r\n{{\"pack_type\":");
    let slow_body = raw(&app, body.as_bytes());
    let many: String = (0..200).map(|number| format!("X-H{number}: 1\r\n")).collect();
    let many = format!("GET /health HTTP/1.1\r\nHost: x\r\n{many}\r\n");
    let long = format!("GET /health HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "a".repeat(300_000));
    let path = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(300_000));
    let (many, long, path) =
        (raw(&app, many.as_bytes()), raw(&app, long.as_bytes()), raw(&app, path.as_bytes()));
    let garbage = raw(&app, b"\x16\x03\x01 what is this?\r\n\r\n");
    let large = format!("{head}Content-Length: 999999999\r\n\r\n{}", " ".repeat(400_000));
    let large = raw(&app, large.as_bytes());
    let chunk = format!("40000\r\n{}\r\n", " ".repeat(0x40000));
    let chunks =
        format!("{head}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n");
    let chunks = raw(&app, chunks.as_bytes());
    // What one server takes for the end of a body and another does not.
    let two_ends = format!("{head}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    let two_ends = raw(&app, two_ends.as_bytes());
    let (slow_head, slow_body, many, long, path, garbage, large, chunks, two_ends) =
        tokio::join!(slow_head, slow_body, many, long, path, garbage, large, chunks, two_ends);
    assert!(slow_head.starts_with("HTTP/1.1 408 "), "{slow_head}");
    assert!(slow_body.starts_with("HTTP/1.1 400 ") && slow_body.contains("did not arrive"), "{slow_body}");
    for answer in [many, long, path] {
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    for answer in [garbage, two_ends] {
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    for answer in [large, chunks] {
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("payload-too-large"), "{answer}");
    }
    // Nothing of it moved money, and the key is unused.
    app.submit(&tenant, "slow", "1").await;
    app.finish().await;
}

/// Found in review: actix limits the first head of a connection alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_dawdles_over_its_second_head_is_let_go_and_one_that_waits_is_not() {
    let limits = Limits { idle_max: Duration::from_secs(1), ..Limits::default() };
    let app = TestApp::within(shared().place().await, &[], limits);
    let tenant = app.tenant("1").await;
    let run_id = app.submit(&tenant, "one", "1").await;
    let dawdler = async {
        let mut stream = TcpStream::connect(app.url.strip_prefix("http://").unwrap()).await.unwrap();
        stream.write_all(b"GET /llms.txt HTTP/1.1\r\nHost: x\r\n\r\nGET").await.unwrap();
        let (mut answer, mut written) = (vec![0; 65_536], 0);
        assert!(stream.read(&mut answer).await.unwrap() > 0, "the first is answered");
        until("it is let go", async || {
            // A byte now and then, for ever.
            written += 1;
            let gone = stream.write_all(b"x").await.is_err();
            gone || matches!(stream.try_read(&mut answer), Ok(0))
        })
        .await;
        assert!(written > 1);
    };
    let path = format!("/v1/runs/{run_id}");
    let waiter = send(&app, "GET", &path, Some(&tenant.key), &[("Prefer", "wait=4")]);
    let (waited, ()) = tokio::join!(waiter, dawdler);
    assert_eq!((waited.status, waited.header("preference-applied")), (200, Some("wait=4")));
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_problem_explains_itself_to_people_and_to_agents() {
    let app = TestApp::start().await;
    let asked = async |path: &str, accept: &str| send(&app, "GET", path, None, &[("Accept", accept)]).await;
    let forms = [
        ("text/html", "text/html; charset=utf-8"),
        ("*/*", "text/html; charset=utf-8"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html; charset=utf-8"),
        ("application/json", "application/json"),
        ("application/problem+json", "application/json"),
        ("APPLICATION/JSON; q=0.5, text/*;q=0.1", "application/json"),
        ("application/*", "application/json"),
        ("text/markdown", "text/markdown; charset=utf-8"),
        ("text/markdown, text/html;q=0.9", "text/markdown; charset=utf-8"),
        ("text/html;q=0, */*", "text/markdown; charset=utf-8"),
        ("image/png", "text/html; charset=utf-8"),
        ("q=;;,/,", "text/html; charset=utf-8"),
    ];
    for (accept, form) in forms {
        let answer = asked("/errors/budget-exceeded", accept).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(form)), "{accept}");
        assert!(answer.headers.get_all("vary").iter().any(|vary| vary == "Accept"));
    }
    let index = asked("/errors", "application/json").await.body;
    assert_eq!(index["data"].as_array().unwrap().len(), Kind::ALL.len());
    let all = asked("/llms.txt", "*/*").await;
    let all = all.body.as_str().unwrap();
    for (kind, entry) in Kind::ALL.iter().zip(index["data"].as_array().unwrap()) {
        let path = format!("/errors/{}", kind.slug());
        // The very address that a problem's type names.
        assert_eq!(entry["type"], format!("{}{path}", app.url));
        assert_eq!(&asked(&path, "application/json").await.body, entry);
        let page = asked(&path, "text/html").await.body;
        let markdown = asked(&path, "text/markdown").await.body;
        let (page, markdown) = (page.as_str().unwrap(), markdown.as_str().unwrap());
        assert!(page.starts_with("<!doctype html>") && page.contains(kind.title()), "{page}");
        assert!(markdown.starts_with(&format!("# {}\n", kind.title())) && markdown.contains(kind.advice()));
        assert!(all.contains(kind.slug()) && all.contains(kind.advice()), "{}", kind.slug());
    }
    is_problem(&asked("/errors/nothing", "text/html").await, 404, "not-found");
    // What agents are told is there is there.
    for path in all.split(&format!("{}/", app.url)).skip(1) {
        let path = path.split(|end: char| "`? ".contains(end)).next().unwrap();
        let path = filled(&format!("/{path}"), RunId::new());
        assert!(methods(&app, &path).await.len() > 1, "{path}");
    }
    assert!(!all.contains("{url}") && !all.contains("{problems}"));
    let forms: Vec<Value> = vec![
        asked("/errors/not-found", "text/markdown").await.body,
        asked("/errors/not-found", "text/html").await.body,
    ];
    insta::assert_json_snapshot!(forms);
    app.finish().await;
}
