//! The built binary: real processes, real signals.

use std::{collections::BTreeMap, time::Duration};

use dpp::config::Settings;
use serde_json::{Value, json};

use crate::harness::{
    DECISION_COST, Tenant, TestApp, decision,
    process::{Process, dpp},
    until,
};

/// A page that answers only when told to, so that a run is in work for as long as a test wants.
struct SlowPage {
    url: String,
    listener: tokio::net::TcpListener,
}

impl SlowPage {
    async fn new() -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        Self { url: format!("http://{}/", listener.local_addr().unwrap()), listener }
    }

    /// Waits until the page is asked for; the answer is sent with [`answer`].
    async fn asked(&self) -> tokio::net::TcpStream {
        let wait = tokio::time::timeout(Duration::from_secs(20), self.listener.accept());
        wait.await.expect("the page is asked for").unwrap().0
    }

    fn body(&self) -> Value {
        json!({"pack_type": "url", "max_cost_usd": "1", "timebox_sec": 60, "inputs": {"url": self.url}})
    }
}

async fn answer(mut stream: tokio::net::TcpStream) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut request = [0; 1024];
    let _ = stream.read(&mut request).await.unwrap();
    let page = "<html><head><title>Slow</title></head><body><p>It was worth the wait.</p></body></html>";
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        page.len()
    );
    stream.write_all(format!("{head}{page}").as_bytes()).await.unwrap();
}

async fn has_status(app: &TestApp, tenant: &Tenant, run: dpp::domain::id::RunId, status: &str) {
    until(&format!("the run is {status}"), async || app.run(tenant, run).await["status"] == status).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_lets_a_worker_finish_what_it_has_and_take_nothing_more() {
    let app = TestApp::start().await;
    let tenant = app.tenant("10").await;
    let page = SlowPage::new().await;
    let run = app.post(&tenant, "slow", &page.body()).await.run_id();
    let mut worker = Process::start(&app.place, &["work"], &[("SHUTDOWN_GRACE_SEC", "20")]);
    let stream = page.asked().await;

    worker.signal("TERM");
    worker.line("takes no more runs").await;
    let later = app.submit(&tenant, "later", "1").await;
    answer(stream).await;

    assert_eq!(worker.ended().await, Some(0));
    let done = app.run(&tenant, run).await;
    assert_eq!(done["status"], "COMPLETED", "{done}");
    assert_eq!(app.run(&tenant, later).await["status"], "QUEUED");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_grace_a_worker_hands_its_runs_back_uncharged_and_uncounted() {
    let app = TestApp::start().await;
    let tenant = app.tenant("10").await;
    let page = SlowPage::new().await;
    let run = app.post(&tenant, "slow", &page.body()).await.run_id();
    let worker = Process::start(&app.place, &["work"], &[("SHUTDOWN_GRACE_SEC", "0.3")]);
    let _stream = page.asked().await;

    worker.signal("TERM");

    assert_eq!(worker.ended().await, Some(0));
    let back = app.run(&tenant, run).await;
    assert_eq!((&back["status"], &back["attempts"]), (&json!("QUEUED"), &json!(0)), "{back}");
    assert_eq!(app.get("/v1/budget", &tenant.key).await.body["charged_usd"], "0.0000");
    // Its message is visible at once: another worker has it without the reaper's help.
    let worker = Process::start(&app.place, &["work"], &[]);
    answer(page.asked().await).await;
    has_status(&app, &tenant, run, "COMPLETED").await;
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_a_worker_mid_run_and_another_completes_it_charged_once() {
    let app = TestApp::start().await;
    let tenant = app.tenant("10").await;
    let page = SlowPage::new().await;
    let run = app.post(&tenant, "slow", &page.body()).await.run_id();
    let reaper = Process::start(&app.place, &["reap"], &[]);
    let first = Process::start(&app.place, &["work"], &[]);
    let stream = page.asked().await;

    first.signal("KILL");
    assert_eq!(first.ended().await, None);
    drop(stream);
    let second = Process::start(&app.place, &["work"], &[]);
    answer(page.asked().await).await;

    has_status(&app, &tenant, run, "COMPLETED").await;
    let done = app.run(&tenant, run).await;
    assert_eq!(done["attempts"], 2, "{done}");
    for process in [second, reaper] {
        process.signal("TERM");
        assert_eq!(process.ended().await, Some(0));
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_the_api_between_its_effects_and_no_money_is_missing() {
    for point in ["before SubmitInsert", "before SubmitSend", "after SubmitSend"] {
        let app = TestApp::start().await;
        let tenant = app.tenant("1").await;
        let mut api = Process::start(&app.place, &["serve"], &[("DPP_CRASH_AT", point)]);
        let url = api.api_url().await;
        let request = reqwest::Client::new()
            .post(format!("{url}/v1/runs"))
            .bearer_auth(&tenant.key)
            .header("Idempotency-Key", "one")
            .header("Content-Type", "application/json")
            .body(decision("1").to_string());
        assert!(request.send().await.is_err(), "the API died at {point}");
        assert_eq!(api.ended().await, None);

        app.move_clock(chrono::TimeDelta::seconds(10));
        app.quiet().await;

        // The client tries again: one run, paid once.
        let again = app.post(&tenant, "one", &decision("1")).await;
        assert_eq!(again.status, 202, "{again:?}");
        app.quiet().await;
        let budget = app.get("/v1/budget", &tenant.key).await.body;
        assert_eq!((&budget["charged_usd"], &budget["held_usd"]), (&json!(DECISION_COST), &json!("0.0000")));
        app.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_roles_as_processes_serve_a_run_and_log_one_trace() {
    let app = TestApp::start().await;
    let tenant = app.tenant("10").await;
    let mut api = Process::start(&app.place, &["serve"], &[]);
    let mut worker = Process::start(&app.place, &["work"], &[]);
    let reaper = Process::start(&app.place, &["reap"], &[]);
    let url = api.api_url().await;

    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let response = reqwest::Client::new()
        .post(format!("{url}/v1/runs"))
        .bearer_auth(&tenant.key)
        .header("Idempotency-Key", "one")
        .header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"))
        .header("X-Request-ID", "my-request.1")
        .header("Content-Type", "application/json")
        .body(decision("1").to_string())
        .send()
        .await
        .unwrap();
    assert_eq!(response.headers()["x-request-id"], "my-request.1");
    assert!(response.headers()["traceparent"].to_str().unwrap().contains(trace));
    let run: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!(run["trace_id"], trace);

    for line in
        [api.line("run accepted").await, worker.line("run taken").await, worker.line("run ended").await]
    {
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&line["trace_id"], &line["run_id"]), (&json!(trace), &run["run_id"]), "{line}");
        assert_eq!(line["tenant_id"], json!(tenant.id));
        assert!(!line.to_string().contains(&tenant.key));
    }
    for process in [api, worker, reaper] {
        process.signal("TERM");
        assert_eq!(process.ended().await, Some(0));
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn admin_commands_do_what_they_say() {
    let app = TestApp::start().await;
    let place = &app.place;
    let document = async |words: &[&str]| -> Value {
        let (code, out, err) = dpp(place, words).await;
        assert_eq!(code, 0, "{words:?}: {err}");
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{words:?}: {error}: {out}"))
    };

    assert_eq!(document(&["migrate", "--json"]).await["applied"], json!([]));
    assert_eq!(document(&["migrate", "--check", "--json"]).await["schema"], "current");
    let tenant = document(&["tenant", "create", "--name", "acme", "--deposit", "12.5", "--json"]).await;
    let id = tenant["tenant_id"].as_str().unwrap();
    assert_eq!((&tenant["name"], &tenant["status"]), (&json!("acme"), &json!("ACTIVE")));
    let deposit = ["budget", "deposit", "--tenant", id, "--amount", "7.5", "--reference", "inv-1", "--json"];
    assert_eq!(document(&deposit).await["deposited_usd"], "20.0000");
    assert_eq!(document(&deposit).await["deposited_usd"], "20.0000");
    let other = ["budget", "deposit", "--tenant", id, "--amount", "8", "--reference", "inv-1", "--json"];
    let (code, _, err) = dpp(place, &other).await;
    assert!(code == 1 && err.contains("7.5000"), "{code} {err}");
    assert_eq!(
        document(&["plan", "assign", "--tenant", "acme", "--plan", "growth", "--json"]).await["plan"],
        "growth"
    );
    let (code, _, err) = dpp(place, &["plan", "assign", "--tenant", "acme", "--plan", "gold"]).await;
    assert!(code == 1 && err.contains("dpp plan list"), "{code} {err}");
    let key = document(&["key", "create", "--tenant", "acme", "--label", "ci", "--json"]).await;
    let secret = key["key"].as_str().unwrap();
    assert_eq!(app.get("/v1/budget", secret).await.body["available_usd"], "20.0000");
    let rotated =
        document(&["key", "rotate", key["key_id"].as_str().unwrap(), "--grace-sec", "3600", "--json"]).await;
    let successor = rotated["key"].as_str().unwrap();
    assert_eq!(app.get("/v1/budget", successor).await.status, 200);
    assert_eq!(app.get("/v1/budget", secret).await.status, 200, "within its grace");
    document(&["key", "revoke", key["key_id"].as_str().unwrap(), "--json"]).await;
    until("the revoked key stops", async || app.get("/v1/budget", secret).await.status == 401).await;
    let keys = document(&["key", "list", "--tenant", id, "--json"]).await;
    assert_eq!(keys.as_array().unwrap().len(), 2);
    assert!(!keys.to_string().contains(secret));
    assert_eq!(document(&["tenant", "suspend", id, "--json"]).await["status"], "SUSPENDED");
    assert_eq!(document(&["tenant", "resume", id, "--json"]).await["status"], "ACTIVE");
    assert_eq!(document(&["audit", "--receipts", "--json"]).await["balanced"], true);
    assert_eq!(document(&["doctor", "--json"]).await["ok"], true);
    let long = "r".repeat(256);
    let wrong_usage: [(&[&str], &str); 7] = [
        (&["tenant", "create"], "--name"),
        (&["budget", "deposit", "--tenant", id, "--amount", "0", "--reference", "r"], "above 0"),
        (&["budget", "deposit", "--tenant", id, "--amount", "-5", "--reference", "r"], "US dollars"),
        (&["budget", "deposit", "--tenant", id, "--amount", "1", "--reference", ""], "1 to 255"),
        (&["budget", "deposit", "--tenant", id, "--amount", "1", "--reference", &long], "1 to 255"),
        (&["budget", "deposit", "--tenant", id, "--amount", "1", "--reference", "a\tb"], "control"),
        (&["key", "revoke", secret], "dpp key list"),
    ];
    for (words, part) in wrong_usage {
        let (code, _, err) = dpp(place, words).await;
        assert!(code == 2 && err.contains(part) && !err.contains(secret), "{words:?}: {code} {err}");
    }
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_differs_is_named_and_no_role_starts_on_it() {
    let app = TestApp::start().await;
    app.place.sql("ALTER TABLE runs ADD COLUMN surprise integer").await;
    let (code, out, _) = dpp(&app.place, &["migrate", "--check"]).await;
    assert!(code == 1 && out.contains("+ column runs.surprise integer"), "{code} {out}");
    let (code, _, err) = dpp(&app.place, &["serve"]).await;
    assert!(code == 1 && err.contains("surprise"), "{code} {err}");
    app.place.sql("ALTER TABLE runs DROP COLUMN surprise; DELETE FROM __diesel_schema_migrations").await;
    let (code, out, _) = dpp(&app.place, &["migrate", "--check"]).await;
    assert!(code == 1 && out.contains("pending"), "{code} {out}");
    app.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_auditor_could_not_look_is_2_and_a_wrong_setting_is_named() {
    let app = TestApp::start().await;
    let mut nowhere = app.place.clone();
    nowhere
        .process_environment
        .insert("DATABASE_URL".to_owned(), "postgres://u:secret-word@127.0.0.1:1/none".to_owned());
    let (code, _, err) = dpp(&nowhere, &["audit"]).await;
    assert!(code == 2 && !err.contains("secret-word"), "{code} {err}");
    let (code, out, _) = dpp(&nowhere, &["doctor"]).await;
    assert!(code == 1 && out.contains("DATABASE_URL"), "{code} {out}");

    let mut wrong = app.place.clone();
    wrong
        .process_environment
        .insert("SQS_DLQ_URL".to_owned(), "http://127.0.0.1:9/000000000000/none".to_owned());
    let (code, out, _) = dpp(&wrong, &["doctor"]).await;
    assert!(code == 1 && out.contains("SQS_DLQ_URL") && !out.contains("ServiceError"), "{code} {out}");
    let mut empty = app.place.clone();
    empty.process_environment = [("DPP_ENV".to_owned(), "dev".to_owned())].into();
    let (code, out, _) = dpp(&empty, &["doctor"]).await;
    assert_eq!(code, 1);
    for name in ["DATABASE_URL", "REDIS_URL", "SQS_QUEUE_URL", "S3_RESULT_BUCKET"] {
        assert_eq!(out.matches(name).count(), 1, "{name} once in {out}");
    }
    wrong.process_environment.insert("LOG_LEVEL".to_owned(), "loud".to_owned());
    wrong.process_environment.insert("LEASE_SEC".to_owned(), "soon".to_owned());
    wrong.process_environment.insert("DPP_PROT".to_owned(), "1".to_owned());
    let (code, _, err) = dpp(&wrong, &["work"]).await;
    assert_eq!(code, 1);
    for part in [
        "LEASE_SEC is \"soon\"",
        "LOG_LEVEL is \"loud\"",
        "DPP_PROT is no setting (its value is \"",
        "DPP_PORT",
    ] {
        assert!(err.contains(part), "{part} in {err}");
    }
    wrong.process_environment.remove("DPP_PROT");
    wrong.process_environment.remove("LOG_LEVEL");
    // What SQS and S3 would refuse, later and again and again.
    for (name, above, right) in
        [("LEASE_SEC", "43200.5", "43200"), ("RESULT_URL_TTL_SEC", "604801", "604800")]
    {
        wrong.process_environment.insert(name.to_owned(), above.to_owned());
        let (code, _, err) = dpp(&wrong, &["work"]).await;
        assert!(code == 1 && err.contains(&format!("{name} is {above}: set it to {right}")), "{code} {err}");
        // Templates leave empty what they have nothing for.
        wrong.process_environment.insert(name.to_owned(), String::new());
    }
    let empty = [
        "LEASE_SEC",
        "HEARTBEAT_SEC",
        "MAX_ATTEMPTS",
        "QUEUE_TTL_SEC",
        "REAPER_INTERVAL_SEC",
        "REAPER_LEASE_POLICY",
        "WORKER_CONCURRENCY",
        "DPP_PORT",
        "LOG_LEVEL",
    ]
    .map(|name| (name.to_owned(), String::new()));
    let (empty, unset) =
        (Settings::resolve(&empty.into()).unwrap(), Settings::resolve(&BTreeMap::new()).unwrap());
    let said = |of: &Settings| format!("{:?} {:?} {}", of.pace(), of.listen(), of.worker_concurrency());
    assert_eq!(said(&empty), said(&unset));
    wrong.process_environment.insert("LEASE_SEC".to_owned(), "3".to_owned());
    wrong.process_environment.insert("DPP_ENV".to_owned(), "production".to_owned());
    let (code, _, err) = dpp(&wrong, &["work"]).await;
    assert!(code == 1 && err.contains("URL_ALLOW_LOOPBACK"), "{code} {err}");
    app.finish().await;
}
