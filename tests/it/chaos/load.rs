//! Buyers: they submit, try again under the same key until they are answered, look at their runs, and hold
//! every answer against those that they had before.

use std::{collections::BTreeMap, sync::Mutex, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::harness::{Tenant, decision};

/// How long a buyer waits for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(6);
/// How long a buyer goes on trying once nothing is broken any more.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a run has ended as; it never changes.
const FINAL: [&str; 6] =
    ["status", "money_state", "actual_cost_usd", "completed_at", "result_sha256", "error"];

/// What all buyers share.
pub struct Market {
    pub urls: Vec<String>,
    pub page_url: String,
    pub http: reqwest::Client,
    /// No new orders any more.
    pub closed: CancellationToken,
    pub counts: Mutex<BTreeMap<String, u64>>,
}

/// One key of one tenant, and what was answered.
#[derive(Clone, Debug)]
pub struct Order {
    pub tenant: usize,
    pub key: String,
    body: Value,
    pub run_id: Option<String>,
    /// Answered with 422 last.
    pub refused: bool,
    /// Some attempt had no answer, or one that says that it does not know: it may have been applied, even
    /// after a later one was refused.
    pub doubtful: bool,
    /// What it ended as.
    pub ended: Option<Value>,
}

/// What a request came to.
enum Heard {
    Answer(u16, Value),
    Nothing,
}

impl Heard {
    fn run(&self) -> Option<&Value> {
        match self {
            Self::Answer(202, run) => Some(run),
            _ => None,
        }
    }

    fn is_refusal(&self) -> bool {
        matches!(self, Self::Answer(422, _))
    }
}

impl Market {
    pub fn new(urls: Vec<String>, page_url: String) -> Self {
        let http = reqwest::Client::builder().no_proxy().timeout(ANSWER_MAX).build().unwrap();
        Self { urls, page_url, http, closed: CancellationToken::new(), counts: Mutex::default() }
    }

    pub fn count(&self, what: &str) {
        *self.counts.lock().unwrap().entry(what.to_owned()).or_default() += 1;
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Heard {
        let answer = async {
            let response = request.send().await?;
            let status = response.status().as_u16();
            Ok::<_, reqwest::Error>((status, response.text().await?))
        };
        let Ok((status, text)) = answer.await else {
            self.count("no answer");
            return Heard::Nothing;
        };
        self.count(&format!("{status}"));
        let body = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{status} {text:?}: {error}"));
        assert_ne!(status, 500, "nothing here is anybody's fault but the outage's: {body}");
        Heard::Answer(status, body)
    }

    async fn submit(&self, url: usize, tenant: &Tenant, key: &str, body: &Value) -> Heard {
        let request = self
            .http
            .post(format!("{}/v1/runs", self.urls[url]))
            .bearer_auth(&tenant.key)
            .header("Idempotency-Key", key)
            .header("Content-Type", "application/json")
            .body(body.to_string());
        self.send(request).await
    }

    pub async fn get(&self, url: usize, tenant: &Tenant, run_id: &str) -> Option<Value> {
        let request = self.http.get(format!("{}/v1/runs/{run_id}", self.urls[url])).bearer_auth(&tenant.key);
        match self.send(request).await {
            Heard::Answer(200, run) => Some(run),
            Heard::Nothing | Heard::Answer(503, _) => None,
            Heard::Answer(status, body) => panic!("an accepted run is answered with {status}: {body}"),
        }
    }
}

impl Order {
    /// Holds an answer to a submit of this key against what was answered before.
    fn hear(&mut self, heard: Heard) -> bool {
        match heard {
            Heard::Answer(202, run) => {
                self.see_run(&run);
                self.refused = false;
                true
            }
            Heard::Answer(422, problem) => {
                assert_eq!(self.run_id, None, "an accepted key was refused: {self:?} {problem}");
                let amount = |name: &str| -> i64 {
                    problem[name].as_str().unwrap().parse::<dpp::domain::money::UsdMicros>().unwrap().get()
                };
                assert!(amount("available_usd") < amount("requested_usd"), "{problem}");
                self.refused = true;
                true
            }
            Heard::Answer(503, problem) => {
                self.doubtful |= !problem["detail"].as_str().unwrap().contains("nothing was charged");
                false
            }
            Heard::Nothing => {
                self.doubtful = true;
                false
            }
            Heard::Answer(status, problem) => panic!("{self:?} is answered with {status}: {problem}"),
        }
    }

    /// Holds a run against what was seen of it before.
    pub fn see_run(&mut self, run: &Value) {
        let run_id = run["run_id"].as_str().unwrap().to_owned();
        let known = self.run_id.get_or_insert(run_id.clone());
        assert_eq!(*known, run_id, "another run under one key: {run}");
        let ended: Value = FINAL.iter().map(|name| ((*name).to_owned(), run[name].clone())).collect();
        match (&self.ended, run["completed_at"].is_null()) {
            (Some(before), _) => assert_eq!(*before, ended, "an ended run changed: {self:?}"),
            (None, false) => self.ended = Some(ended),
            (None, true) => {}
        }
    }
}

/// Buys until the market closes, then goes on until every order is answered.
pub async fn buyer(market: &Market, tenant: (usize, &Tenant), number: usize, seed: u64) -> Vec<Order> {
    let mut rng = StdRng::seed_from_u64(seed);
    let (tenant, owner) = tenant;
    let mut orders = Vec::new();
    while !market.closed.is_cancelled() {
        let mut order = Order {
            tenant,
            key: format!("t{tenant}-b{number}-{}", orders.len()),
            body: wish(market, &mut rng),
            run_id: None,
            refused: false,
            doubtful: false,
            ended: None,
        };
        place(market, owner, &mut order, &mut rng).await;
        look(market, owner, &mut order, &mut rng).await;
        orders.push(order);
        if rng.random_bool(0.2) {
            // A key of long ago: the same run, or, if it was refused, a new chance.
            let at = rng.random_range(0..orders.len());
            place(market, owner, &mut orders[at], &mut rng).await;
        }
        pause(&mut rng, 20..200).await;
    }
    orders
}

/// Submits until there is an answer that says what became of it.
async fn place(market: &Market, owner: &Tenant, order: &mut Order, rng: &mut StdRng) {
    let mut end = None;
    market.count("submits");
    loop {
        let url = rng.random_range(0..market.urls.len());
        let answered = if rng.random_bool(0.15) {
            // Twice at once, by both replicas.
            let other = (url + 1) % market.urls.len();
            let (one, two) = tokio::join!(
                market.submit(url, owner, &order.key, &order.body),
                market.submit(other, owner, &order.key, &order.body),
            );
            let mut both = [one, two];
            if both.iter().any(Heard::is_refusal) && both.iter().any(|heard| heard.run().is_some()) {
                market.count("accepted and refused at once");
            }
            // Neither came before the other: a refusal or an older sight of the run may be heard last.
            both.sort_by_key(|heard| {
                (!heard.is_refusal(), heard.run().is_some_and(|run| !run["completed_at"].is_null()))
            });
            both.map(|heard| order.hear(heard)).contains(&true)
        } else {
            order.hear(market.submit(url, owner, &order.key, &order.body).await)
        };
        if answered {
            return;
        }
        if market.closed.is_cancelled() {
            let end = *end.get_or_insert_with(|| tokio::time::Instant::now() + PATIENCE);
            assert!(tokio::time::Instant::now() < end, "nothing is broken, and no answer: {order:?}");
        }
        pause(rng, 50..400).await;
    }
}

/// Looks at what became of an order, and tries its key on another payload.
async fn look(market: &Market, owner: &Tenant, order: &mut Order, rng: &mut StdRng) {
    let Some(run_id) = order.run_id.clone() else { return };
    for _ in 0..rng.random_range(0..6) {
        let url = rng.random_range(0..market.urls.len());
        if let Some(run) = market.get(url, owner, &run_id).await {
            order.see_run(&run);
        }
        pause(rng, 50..300).await;
    }
    if rng.random_bool(0.05) {
        let mut other = order.body.clone();
        other["metadata"] = json!({"another": "payload"});
        match market.submit(rng.random_range(0..market.urls.len()), owner, &order.key, &other).await {
            Heard::Nothing | Heard::Answer(409 | 503, _) => {}
            Heard::Answer(status, body) => panic!("a used key with another payload: {status} {body}"),
        }
    }
}

/// A small decision or a slow page, with more or less of the budget.
fn wish(market: &Market, rng: &mut StdRng) -> Value {
    let cost = ["0.0200", "0.1000", "0.3000", "0.6000"][rng.random_range(0..4)];
    if rng.random_bool(0.7) {
        return decision(cost);
    }
    json!({"pack_type": "url", "max_cost_usd": cost, "timebox_sec": 5, "inputs": {"url": market.page_url}})
}

/// The buyer's own time.
async fn pause(rng: &mut StdRng, milliseconds: std::ops::Range<u64>) {
    tokio::time::sleep(Duration::from_millis(rng.random_range(milliseconds))).await;
}

/// Serves a page that takes its time: mostly a moment, sometimes longer than a lease, sometimes too long.
pub async fn slow_page(listener: TcpListener, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut visits = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = visits.join_next() => {}
            Ok((mut stream, _)) = listener.accept() => {
                let most = if rng.random_bool(0.8) { 1_000 } else { 6_000 };
                let takes = Duration::from_millis(rng.random_range(0..most));
                visits.spawn(async move {
                    let mut request = [0; 4_096];
                    let _ = stream.read(&mut request).await?;
                    tokio::time::sleep(takes).await;
                    let page = "<html><head><title>Slow</title></head><body><p>It took its time.</p></body></html>";
                    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n";
                    let length = page.len();
                    stream.write_all(format!("{head}Content-Length: {length}\r\n\r\n{page}").as_bytes()).await
                });
            }
        }
    }
}
