//! Keys: made, limited, listed, rotated and revoked by whoever has one that may.

use chrono::TimeDelta;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    edge::{filled, send},
    is_problem,
};
use crate::harness::{Answer, TestApp, contract::Operation, decision, until};

async fn post(app: &TestApp, key: &str, path: &str, body: &Value) -> Answer {
    let request = app.request(Method::POST, path).bearer_auth(key);
    app.send(request.header("Content-Type", "application/json").body(body.to_string())).await
}

async fn make(app: &TestApp, key: &str, body: &Value) -> (String, String) {
    let answer = post(app, key, "/v1/keys", body).await;
    assert_eq!((answer.status, answer.header("cache-control")), (201, Some("no-store")), "{answer:?}");
    let text = |name: &str| answer.body[name].as_str().unwrap().to_owned();
    (text("key_id"), text("key"))
}

async fn find(app: &TestApp, key: &str, key_id: &str) -> Value {
    let keys = app.get("/v1/keys?limit=100", key).await.body;
    let found = keys["data"].as_array().unwrap().iter().find(|key| key["key_id"] == key_id);
    found.unwrap_or_else(|| panic!("{key_id} in {keys}")).clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_lives_from_its_making_to_its_end() {
    let app = TestApp::start().await;
    let (tenant, other) = (app.tenant("1").await, app.tenant("1").await);
    let body = json!({"label": "sub-agent", "scopes": ["usage:read", "keys:manage", "usage:read"]});
    let (key_id, key) = make(&app, &tenant.key, &body).await;
    let listed = find(&app, &tenant.key, &key_id).await;
    assert_eq!(listed["label"], "sub-agent");
    assert_eq!(listed["scopes"], json!(["usage:read", "keys:manage"]));
    assert_eq!((&listed["last_used_at"], &listed["expires_at"]), (&Value::Null, &Value::Null));
    assert_eq!(listed.get("key"), None, "the secret is shown once");

    // Its use is noted, to the minute, behind the request's back.
    assert_eq!(app.get("/v1/budget", &key).await.status, 200);
    until("the use is noted", async || find(&app, &tenant.key, &key_id).await["last_used_at"].is_string())
        .await;

    // Rotated: both work, then the successor alone, with the same rights; and only one successor.
    let rotated =
        post(&app, &tenant.key, &format!("/v1/keys/{key_id}/rotate"), &json!({"grace_sec": 3600})).await;
    assert_eq!((rotated.status, &rotated.body["scopes"]), (201, &listed["scopes"]), "{rotated:?}");
    assert_eq!(rotated.body["expires_at"], Value::Null, "the grace is the old key's");
    let successor = rotated.body["key"].as_str().unwrap();
    for key in [&key, successor] {
        assert_eq!(app.get("/v1/budget", key).await.status, 200);
    }
    let again = post(&app, &tenant.key, &format!("/v1/keys/{key_id}/rotate"), &json!({})).await;
    is_problem(&again, 404, "not-found");
    app.move_clock(TimeDelta::hours(1));
    until("the old key's grace is over", async || app.get("/v1/budget", &key).await.status == 401).await;
    assert_eq!(app.get("/v1/budget", successor).await.status, 200);

    // Revoked, by itself even; a second time is the same, and another tenant cannot.
    let successor_id = rotated.body["key_id"].as_str().unwrap();
    let path = format!("/v1/keys/{successor_id}");
    is_problem(&send(&app, "DELETE", &path, Some(&other.key), &[]).await, 404, "not-found");
    for _ in 0..2 {
        assert_eq!(send(&app, "DELETE", &path, Some(&tenant.key), &[]).await.status, 204);
    }
    until("the key is revoked", async || app.get("/v1/budget", successor).await.status == 401).await;
    let rotated = post(&app, &tenant.key, &format!("{path}/rotate"), &json!({})).await;
    is_problem(&rotated, 404, "not-found");

    // The list goes page by page, and holds nobody else's.
    let (first, second) =
        (app.get("/v1/keys?limit=2", &tenant.key).await.body, app.get("/v1/keys", &tenant.key).await);
    let cursor = first["next_cursor"].as_str().unwrap();
    let rest = app.get(&format!("/v1/keys?cursor={cursor}"), &tenant.key).await.body;
    let both = [first["data"].as_array().unwrap().clone(), rest["data"].as_array().unwrap().clone()].concat();
    assert_eq!(json!(both), second.body["data"]);
    assert_eq!(both.len(), 3);
    is_problem(&app.get(&format!("/v1/keys?cursor={cursor}"), &other.key).await, 400, "invalid-cursor");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_asks_for_the_scope_that_it_says() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    let run_id = app.submit(&tenant, "one", "0.5").await;
    let mut keys = Vec::new();
    for scope in ["runs:write", "runs:read", "usage:read", "keys:manage"] {
        keys.push((scope, make(&app, &tenant.key, &json!({"scopes": [scope]})).await.1));
    }
    for operation in Operation::all() {
        let Some(needed) = operation.scope() else { continue };
        let path = filled(&operation.path, run_id);
        // HEAD is GET without its body.
        let method = operation.method.as_str();
        for method in [method, "HEAD"].into_iter().filter(|other| *other == method || method == "GET") {
            for (scope, key) in &keys {
                let answer = send(&app, method, &path, Some(key), &[]).await;
                let may = needed.is_none_or(|needed| needed == *scope);
                assert_eq!(answer.status != 403, may, "{scope} on {method} {path}: {answer:?}");
                if may {
                    continue;
                }
                assert_eq!(answer.header("www-authenticate"), Some("Bearer error=\"insufficient_scope\""));
                if method != "HEAD" {
                    is_problem(&answer, 403, "insufficient-scope");
                    assert!(answer.body["detail"].as_str().unwrap().contains(needed.unwrap()));
                }
            }
        }
    }
    // A sub-agent that may buy and not look, and one that may look and not buy.
    let buyer = crate::harness::Tenant { id: tenant.id, key: keys[0].1.clone() };
    assert_eq!(app.post(&buyer, "two", &decision("0.5")).await.status, 202);
    let reader = crate::harness::Tenant { id: tenant.id, key: keys[1].1.clone() };
    is_problem(&app.post(&reader, "three", &decision("0.5")).await, 403, "insufficient-scope");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_hands_out_more_than_they_have() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    let now = app.cx.store.now().await.unwrap();
    let soon = (now + TimeDelta::hours(1)).to_rfc3339();
    let later = (now + TimeDelta::hours(2)).to_rfc3339();
    let limited = json!({"scopes": ["keys:manage", "runs:read"], "expires_at": soon});
    let (limited_id, limited) = make(&app, &tenant.key, &limited).await;
    let (whole_id, _) = make(&app, &tenant.key, &json!({"label": "everything"})).await;

    // What it does not say it inherits.
    let (child_id, child) = make(&app, &limited, &json!({})).await;
    let (mine, childs) = (find(&app, &limited, &limited_id).await, find(&app, &limited, &child_id).await);
    for member in ["scopes", "expires_at"] {
        assert_eq!(mine[member], childs[member]);
    }
    let (_, grandchild) = make(&app, &child, &json!({"scopes": ["runs:read"]})).await;
    is_problem(&app.get("/v1/keys", &grandchild).await, 403, "insufficient-scope");
    for more in [
        json!({"scopes": ["runs:write"]}),
        json!({"scopes": ["runs:read", "usage:read"]}),
        json!({"scopes": ["runs:write", "runs:read", "usage:read", "keys:manage"]}),
        json!({"expires_at": later}),
    ] {
        is_problem(&post(&app, &limited, "/v1/keys", &more).await, 403, "insufficient-scope");
    }
    // Nor by way of another's successor.
    let path = format!("/v1/keys/{whole_id}/rotate");
    is_problem(&post(&app, &limited, &path, &json!({})).await, 403, "insufficient-scope");
    // Its own is its own, and ends when it would have.
    let own = post(&app, &limited, &format!("/v1/keys/{limited_id}/rotate"), &json!({"grace_sec": 0})).await;
    assert_eq!((own.status, &own.body["expires_at"]), (201, &mine["expires_at"]), "{own:?}");
    app.move_clock(TimeDelta::hours(1));
    let successor = own.body["key"].as_str().unwrap();
    for key in [successor, &child, &grandchild] {
        until("the key has ended", async || app.get("/v1/packs", key).await.status == 401).await;
    }
    assert_eq!(app.get("/v1/packs", &tenant.key).await.status, 200);
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_cannot_be_is_refused_with_what_would_be_right() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    for (body, pointer) in [
        (json!({"label": 1}), "/label"),
        (json!({"label": "x".repeat(201)}), "/label"),
        (json!({"label": "a\u{0}b"}), "/label"),
        (json!({"scopes": []}), "/scopes"),
        (json!({"scopes": "runs:read"}), "/scopes"),
        (json!({"scopes": ["runs:all"]}), "/scopes"),
        (json!({"expires_at": "tomorrow"}), "/expires_at"),
        (json!({"expires_at": 5}), "/expires_at"),
        (json!({"expires_at": "2001-01-01T00:00:00Z"}), "/expires_at"),
        (json!({"tenant_id": tenant.id}), "/tenant_id"),
    ] {
        let answer = post(&app, &tenant.key, "/v1/keys", &body).await;
        is_problem(&answer, 400, "invalid-request");
        assert_eq!(answer.body["errors"][0]["pointer"], pointer, "{answer:?}");
    }
    let (key_id, _) = make(&app, &tenant.key, &json!({"label": "ü".repeat(200)})).await;
    for (body, pointer) in [
        (json!({"grace_sec": -1}), "/grace_sec"),
        (json!({"grace_sec": 1.5}), "/grace_sec"),
        (json!({"grace_sec": 1_u64 << 60}), "/grace_sec"),
        (json!({"grace": 1}), "/grace"),
    ] {
        let answer = post(&app, &tenant.key, &format!("/v1/keys/{key_id}/rotate"), &body).await;
        is_problem(&answer, 400, "invalid-request");
        assert_eq!(answer.body["errors"][0]["pointer"], pointer, "{answer:?}");
    }
    for path in ["/v1/keys/none/rotate", "/v1/keys/0194f1a0-0000-7000-8000-000000000000/rotate"] {
        is_problem(&post(&app, &tenant.key, path, &json!({})).await, 404, "not-found");
    }
    // Without a body it is a day's grace.
    let request = app.request(Method::POST, &format!("/v1/keys/{key_id}/rotate")).bearer_auth(&tenant.key);
    assert_eq!(app.send(request).await.status, 201);
    app.finish().await;
}

/// Found in review: a caller is remembered for a moment after its revocation, and could make a key in that
/// moment that outlived it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_makes_no_key_not_even_while_it_is_remembered() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1").await;
    let (thief_id, thief) = make(&app, &tenant.key, &json!({"label": "lost"})).await;
    assert_eq!(app.get("/v1/keys", &thief).await.status, 200);
    let revoke = app.request(Method::DELETE, &format!("/v1/keys/{thief_id}")).bearer_auth(&tenant.key);
    assert!(app.send(revoke).await.status < 300);

    for path in ["/v1/keys".to_owned(), format!("/v1/keys/{thief_id}/rotate")] {
        is_problem(&post(&app, &thief, &path, &json!({})).await, 401, "unauthorized");
    }
    let keys = app.get("/v1/keys?limit=100", &tenant.key).await.body;
    assert_eq!(keys["data"].as_array().unwrap().len(), 2, "{keys}");
    app.finish().await;
}
