//! The harness: the real app over real services, one database and one key space a test, and the
//! promises checked at the end of every test.
//!
//! One server set serves the whole run. It is started by a thread that lives as long as the process,
//! and the kernel ends it with the process, however that ends.

pub mod check;
pub mod contract;
pub mod line;
pub mod process;
pub mod s3;
pub mod script;
pub mod services;
pub mod wire;

use std::{collections::BTreeMap, net::TcpListener, sync::Arc, time::Duration};

use dpp::{
    api,
    config::Settings,
    domain::{
        api_key::ApiKey,
        id::{RunId, TenantId},
        money::UsdMicros,
        scope::Scopes,
    },
    flow::{self, Ctx, Detached, Tally, deposit, wait::Waits},
    pack::Registry,
    reaper::Pass,
    role::parts,
    store::{NewKey, NewLimits},
    worker,
};
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    script::{Script, ScriptedPack},
    services::{Place, shared},
    wire::Wire,
};

/// How long a condition may take to come true.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How often the reaper may have to pass until nothing changes.
const PASSES_MAX: usize = 20;

/// The app, a client, and everything that it stands on.
pub struct TestApp {
    pub cx: Arc<Ctx>,
    pub url: String,
    pub place: Place,
    /// What scripted packs wait for.
    pub script: Script,
    http: reqwest::Client,
    stop: CancellationToken,
    tasks: TaskTracker,
    checked: bool,
}

/// How long requests wait, and how many.
pub struct Limits {
    /// For runs to end.
    pub waits: Waits,
    /// For their flows.
    pub answer_max: Duration,
    /// And connections for requests.
    pub idle_max: Duration,
}

impl Default for Limits {
    /// A machine at its limits is no failure of the test.
    fn default() -> Self {
        Self { waits: Waits::default(), answer_max: PATIENCE, idle_max: Duration::from_secs(80) }
    }
}

/// A tenant with a key.
#[derive(Clone, Debug)]
pub struct Tenant {
    pub id: TenantId,
    pub key: String,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Answer {
    /// The slug of a problem.
    pub fn slug(&self) -> &str {
        self.body["type"].as_str().unwrap_or("").rsplit('/').next().unwrap_or("")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub fn run_id(&self) -> RunId {
        self.body["run_id"].as_str().unwrap_or_else(|| panic!("no run in {self:?}")).parse().unwrap()
    }
}

/// A settings change for one test.
pub type Change<'a> = (&'a str, &'a str);

impl TestApp {
    /// An app with short intervals, where nothing works or reaps by itself.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// The same, with settings of the test's own.
    pub async fn with(changes: &[Change<'_>]) -> Self {
        let mut place = shared().place().await;
        place.change(changes);
        Self::on(place, &[])
    }

    /// The same, with proxies before S3 and SQS that make faults.
    pub async fn wired(changes: &[Change<'_>]) -> (Self, Wire) {
        let mut place = shared().place().await;
        let wire = Wire::between(&mut place);
        place.change(changes);
        (Self::on(place, &[]), wire)
    }

    /// An app on a place that another app may have used before: a restart.
    pub fn on(place: Place, changes: &[Change<'_>]) -> Self {
        Self::within(place, changes, Limits::default())
    }

    /// The same, within limits of the test's own.
    pub fn within(place: Place, changes: &[Change<'_>], limits: Limits) -> Self {
        let mut environment: BTreeMap<String, String> = place.environment.clone();
        environment.extend(changes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let settings = Settings::resolve(&environment).unwrap();
        let mut cx = parts::context(&settings, &place.aws).unwrap();
        let script = Script::default();
        let mut packs = parts::packs(&settings);
        packs.push(Box::new(ScriptedPack::new(script.clone())));
        cx.packs = Registry::new(packs);
        cx.waits = limits.waits;
        let cx = Arc::new(cx);
        // The clock never goes back, not even in a restart.
        cx.store.move_clock(*place.clock.lock().unwrap());
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let detached = Detached::new(tokio::runtime::Handle::current(), tasks.clone(), limits.answer_max);
        let app = api::App::new(Arc::clone(&cx), detached, url.clone())
            .with_origins(settings.origins())
            .with_admin(settings.admin_token().as_ref())
            .with_idle_max(limits.idle_max);
        let server = api::serve(listener, app, Duration::from_secs(5), stop.clone()).unwrap();
        tasks.spawn(server);
        tasks.spawn(flow::wait::run(Arc::clone(&cx), stop.clone()));
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(30))
            .build()
            .unwrap();
        Self { cx, url, place, script, http, stop, tasks, checked: false }
    }

    /// Moves the clock of this place's database.
    pub fn move_clock(&self, by: chrono::TimeDelta) {
        *self.place.clock.lock().unwrap() += by;
        self.cx.store.move_clock(by);
    }

    /// Ends an app whose place another app goes on to use and check.
    pub fn abandon(mut self) {
        self.checked = true;
    }

    /// The same app anew over the same services, as after a crash of all its processes.
    pub fn restart(mut self) -> Self {
        self.checked = true;
        self.stop.cancel();
        Self::on(self.place.clone(), &[])
    }

    /// A tenant on the enterprise plan with a deposit and a key.
    pub async fn tenant(&self, deposit_usd: &str) -> Tenant {
        let tenant = self.cx.store.create_tenant("test", "enterprise").await.unwrap();
        let amount: UsdMicros = deposit_usd.parse().unwrap();
        if !amount.is_zero() {
            deposit::deposit(&self.cx, tenant.tenant_id, amount, "first").await.unwrap();
        }
        self.key_of(tenant.tenant_id).await
    }

    /// The tenant with a further key.
    pub async fn key_of(&self, tenant_id: TenantId) -> Tenant {
        let key = ApiKey::generate();
        self.cx.store.create_key(tenant_id, "test", key.digest()).await.unwrap();
        Tenant { id: tenant_id, key: key.reveal().to_owned() }
    }

    /// Gives a tenant a plan of its own: unlimited, but for `limits` ("runs_per_minute = 3, …").
    pub async fn limit(&self, tenant: &Tenant, limits: &str) {
        let plan = format!("of-{}", tenant.id);
        self.place
            .sql(&format!(
                "INSERT INTO plans (plan, run_cost_max_usd_micros, runs_per_minute, polls_per_minute, concurrent_runs_max,
                    monthly_spend_max_usd_micros, timebox_secs_max, retention_days)
                 VALUES ('{plan}', 0, 0, 0, 0, 0, 3600, 90) ON CONFLICT DO NOTHING;
                 UPDATE plans SET {limits} WHERE plan = '{plan}';
                 UPDATE tenant_plans SET plan = '{plan}' WHERE tenant_id = '{}' AND ended_at IS NULL",
                tenant.id
            ))
            .await;
    }

    /// The tenant with a key that may spend so much.
    pub async fn limited_key_of(&self, tenant_id: TenantId, spend_max: UsdMicros) -> Tenant {
        let key = ApiKey::generate();
        let limits = NewLimits::Own { runs_per_minute: 0, polls_per_minute: 0, spend_max: Some(spend_max) };
        let new =
            NewKey { tenant_id, label: "test".to_owned(), scopes: Scopes::All, expires_at: None, limits };
        self.cx.store.create_limited_key(&new, None, key.digest()).await.unwrap().unwrap();
        Tenant { id: tenant_id, key: key.reveal().to_owned() }
    }

    /// Waits until the flows of clients that have hung up have ended.
    pub async fn idle(&self) {
        // What is left is the server, and who wakes those who wait.
        until("all flows have ended", async || self.tasks.len() <= 2).await;
    }

    pub async fn get(&self, path: &str, key: &str) -> Answer {
        self.send(self.http.get(format!("{}{path}", self.url)).bearer_auth(key)).await
    }

    /// Submits `body` under an idempotency key.
    pub async fn post(&self, tenant: &Tenant, idempotency_key: &str, body: &Value) -> Answer {
        let request = self
            .http
            .post(format!("{}/v1/runs", self.url))
            .bearer_auth(&tenant.key)
            .header("Idempotency-Key", idempotency_key)
            .header("Content-Type", "application/json")
            .body(body.to_string());
        self.send(request).await
    }

    /// A request of the test's own making.
    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    /// Sends a request; its answer is as the OpenAPI document says, whatever the test is about.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let request = request.build().unwrap();
        let (method, path) = (request.method().to_string(), request.url().path().to_owned());
        let response = self.http.execute(request).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = response.bytes().await.unwrap();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        let answer = Answer { status, headers, body };
        contract::check(&method, &path, &answer);
        answer
    }

    /// Submits a small decision with a cap, and expects it to be accepted.
    pub async fn submit(&self, tenant: &Tenant, idempotency_key: &str, max_cost_usd: &str) -> RunId {
        let answer = self.post(tenant, idempotency_key, &decision(max_cost_usd)).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.run_id()
    }

    pub async fn run(&self, tenant: &Tenant, run_id: RunId) -> Value {
        let answer = self.get(&format!("/v1/runs/{run_id}"), &tenant.key).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    }

    /// Works on what is in the queue until it is empty; returns how many runs were taken.
    pub async fn work(&self) -> usize {
        let (mut taken, mut failures) = (0, 0);
        while failures < 3 {
            match flow::survive(worker::once(Arc::clone(&self.cx), Duration::ZERO)).await {
                Ok(Ok(0)) => return taken,
                Ok(Ok(count)) => taken += count,
                // A worker that was made to die, or met an outage that was made.
                Ok(Err(_)) | Err(_) => failures += 1,
            }
        }
        panic!("the worker cannot work");
    }

    /// One pass.
    pub async fn pass(&self, pass: Pass) -> Tally {
        pass.once(&self.cx).await.unwrap()
    }

    /// All passes, over and over, until nothing changes. Returns how much did.
    pub async fn reap(&self) -> u64 {
        let mut changed = 0;
        for _ in 0..PASSES_MAX {
            let mut all = Tally::default();
            for pass in Pass::ALL {
                all.add(self.pass(pass).await);
            }
            if all.changed == 0 {
                return changed;
            }
            changed += all.changed;
        }
        panic!("the reaper does not come to rest");
    }

    /// Reaps and works in turn until nothing is left to do, with all grace periods over.
    pub async fn quiet(&self) {
        self.reap().await;
        for _ in 0..PASSES_MAX {
            // A queue that has come to be empty has the reaper send what was lost.
            let (taken, changed) = (self.work().await, self.reap().await);
            if taken == 0 && changed == 0 {
                return;
            }
        }
        panic!("the work does not come to an end");
    }

    /// Ends the test: everything comes to rest, every run has ended (or waits for a person), and the promises
    /// hold.
    pub async fn finish(mut self) {
        self.checked = true;
        self.quiet().await;
        check::promises(&self).await;
        self.stop_server().await;
        self.place.release().await;
    }

    async fn stop_server(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        self.stop.cancel();
        assert!(self.checked || std::thread::panicking(), "a test ends with TestApp::finish");
    }
}

/// A small decision: 2 criteria × 2 options, which costs $0.0120.
pub fn decision(max_cost_usd: &str) -> Value {
    json!({
        "pack_type": "decision",
        "max_cost_usd": max_cost_usd,
        "inputs": {
            "criteria": [
                {"name": "price", "weight": 2, "direction": "minimize"},
                {"name": "speed", "weight": 1},
            ],
            "options": [
                {"name": "A", "scores": {"price": 10, "speed": 3}},
                {"name": "B", "scores": {"price": 14, "speed": 9}},
            ],
        },
    })
}

/// What [`decision`] costs.
pub const DECISION_COST: &str = "0.0120";

/// Waits until a condition holds.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(tokio::time::Instant::now() < end, "this did not come true: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Says what a long test did, where `--nocapture` shows it.
#[expect(clippy::print_stderr, reason = "a test's report is for whoever runs it")]
pub fn say(report: &str) {
    eprintln!("{report}");
}
