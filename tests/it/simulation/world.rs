//! The world in which steps happen: the real app over real services, with proxies at the wire.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use aws_smithy_async::rt::sleep::{AsyncSleep, SharedAsyncSleep, Sleep, TokioSleep};
use chrono::TimeDelta;
use deadpool_redis::redis;
use dpp::{
    domain::{
        id::TenantId,
        money::UsdMicros,
        run::{Leased, Reason},
    },
    flow::{Ctx, crash::CrashPoint, deposit, finish, rebuild, resend, snapshot, survive, take},
    reaper::Pass,
    store::Deposit,
    worker,
};
use futures::future::join_all;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::{
    model::{ATTEMPTS_MAX, Books, Gate, Model, Observation, QUEUE_TTL_SECS, RunRow},
    step::{Ends, KEY_MAX, MONTH_MAX, OPEN_MAX, Outage, Step, Submit, TENANTS, usd},
};
use crate::harness::{
    PATIENCE, Tenant, TestApp, check,
    services::{Place, shared},
    until,
    wire::{Fault, Which, Wire},
};

/// A worker's lease and the message's hiding.
const LEASE: Duration = Duration::from_secs(3);
/// How long the API may remember a key's owner.
const CALLER_TTL: Duration = Duration::from_secs(2);
/// How long a shift waits for something that need not come.
const BEATS_MAX: Duration = Duration::from_secs(1);
/// More than any pool has connections.
const CONNECTIONS_MAX: usize = 10;

pub fn key_text(key: u8) -> String {
    format!("key-{key}")
}

/// The SDK's pauses, made short. A pause between retries is drawn by lot and so is no whole number of tenths
/// of a second; what is one is a limit, which is kept, unless something hangs on purpose.
#[derive(Clone, Debug, Default)]
struct Hurry {
    hanging: Arc<AtomicBool>,
}

impl AsyncSleep for Hurry {
    fn sleep(&self, duration: Duration) -> Sleep {
        let retries = !duration.subsec_nanos().is_multiple_of(100_000_000);
        let hangs = self.hanging.load(Ordering::Relaxed);
        let short = match (retries, hangs) {
            (true, _) => duration / 100,
            (false, true) => duration / 20,
            (false, false) => duration,
        };
        TokioSleep::new().sleep(short)
    }
}

/// What was done: steps by kind, faults made, and those of them that struck.
#[derive(Clone, Debug, Default)]
pub struct Done {
    pub kinds: BTreeMap<String, (u32, u128)>,
    pub made: BTreeMap<String, usize>,
    pub struck: BTreeMap<String, usize>,
}

impl Done {
    pub fn took(&mut self, kind: String, time: Duration) {
        let kind = self.kinds.entry(kind).or_default();
        *kind = (kind.0 + 1, kind.1 + time.as_millis());
    }
}

/// Everything.
pub struct World {
    /// The app of now.
    app: RefCell<Rc<TestApp>>,
    /// Apps of before a restart whose flows have not ended.
    former: RefCell<Vec<Rc<TestApp>>>,
    /// What is to be given back, and the same behind the proxies.
    lent: Place,
    place: Place,
    wire: Wire,
    hurry: Hurry,
    tenants: RefCell<Vec<Tenant>>,
    /// By tenant, the key that was last revoked, and when.
    revoked: RefCell<Vec<Option<(Tenant, Instant)>>>,
    model: RefCell<Model>,
    paused: RefCell<Vec<Leased>>,
    /// Messages that the queue has kept back.
    held_back: RefCell<Vec<String>>,
    /// The keys of Redis' last snapshot.
    saved: RefCell<Vec<(String, Vec<u8>)>>,
    redis: redis::aio::MultiplexedConnection,
    /// What the gate calls this server.
    server: String,
    sql: tokio_postgres::Client,
    sqs: aws_sdk_sqs::Client,
    /// Past the proxy.
    s3: (aws_sdk_s3::Client, String),
    /// How many outages are under way, and whether some may still be felt.
    outages: Cell<usize>,
    shaken: Cell<bool>,
    /// How many flows are held up.
    held_up: Cell<usize>,
    pub done: RefCell<Done>,
}

/// Micros as the product has them.
fn micros(amount: i64) -> UsdMicros {
    UsdMicros::new(amount).unwrap()
}

async fn observer(place: &Place) -> tokio_postgres::Client {
    let (client, connection) =
        tokio_postgres::connect(&place.database_url, tokio_postgres::NoTls).await.unwrap();
    // It ends with its client.
    tokio::spawn(connection);
    client
}

impl World {
    pub async fn new() -> Self {
        let lent = shared().place().await;
        let mut place = lent.clone();
        let hurry = Hurry::default();
        place.aws = place.aws.into_builder().sleep_impl(SharedAsyncSleep::new(hurry.clone())).build();
        let wire = Wire::between(&mut place);
        place.change(&[
            ("QUEUE_TTL_SEC", &QUEUE_TTL_SECS.to_string()),
            ("MAX_ATTEMPTS", &ATTEMPTS_MAX.to_string()),
            ("REAPER_LEASE_POLICY", "minimum_fee"),
            ("HEARTBEAT_SEC", "0.05"),
        ]);
        let app = TestApp::on(place.clone(), &[]);
        app.script.go_on();
        let mut tenants = vec![app.tenant("3").await, app.tenant("1.5").await];
        tenants[0] = app.limited_key_of(tenants[0].id, micros(KEY_MAX[0].unwrap())).await;
        let limits =
            format!("concurrent_runs_max = {}, monthly_spend_max_usd_micros = {}", OPEN_MAX[1], MONTH_MAX[1]);
        app.limit(&tenants[1], &limits).await;
        let mut model = Model::default();
        model.deposits(0, "first", 3_000_000);
        model.deposits(1, "first", 1_500_000);
        let client = redis::Client::open(place.redis_url.as_str()).unwrap();
        let patient = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        let connection = client.get_multiplexed_async_connection_with_config(&patient).await.unwrap();
        let server = check::server(&app).await;
        Self {
            app: RefCell::new(Rc::new(app)),
            former: RefCell::default(),
            wire,
            hurry,
            tenants: RefCell::new(tenants),
            revoked: RefCell::new(vec![None; TENANTS]),
            model: RefCell::new(model),
            paused: RefCell::default(),
            held_back: RefCell::default(),
            saved: RefCell::default(),
            redis: connection,
            server,
            sql: observer(&place).await,
            sqs: place.sqs().0,
            s3: (lent.s3().0, lent.s3().1.to_owned()),
            place,
            lent,
            outages: Cell::new(0),
            shaken: Cell::new(false),
            held_up: Cell::new(0),
            done: RefCell::default(),
        }
    }

    fn app(&self) -> Rc<TestApp> {
        Rc::clone(&self.app.borrow())
    }

    fn cx(&self) -> Arc<Ctx> {
        Arc::clone(&self.app().cx)
    }

    fn tenant(&self, tenant: usize) -> Tenant {
        self.tenants.borrow()[tenant].clone()
    }

    fn id(&self, tenant: usize) -> TenantId {
        self.tenants.borrow()[tenant].id
    }

    /// A flow's outcome: only an outage excuses a failure.
    fn judge<T: fmt::Debug, E: fmt::Debug, P: fmt::Debug>(
        &self,
        outcome: Result<Result<T, E>, P>,
    ) -> Option<T> {
        match outcome {
            Ok(Ok(value)) => Some(value),
            failed => {
                assert!(self.outages.get() > 0 || self.shaken.get(), "without an outage: {failed:?}");
                None
            }
        }
    }

    /// A step and what holds after it.
    pub async fn step(&self, step: &Step) {
        self.happen(step).await;
        if matches!(step, Step::During { .. }) {
            self.look(hands_back(step), false).await;
        }
        self.look(hands_back(step), true).await;
        // Processes of before a restart, once their last flow has ended.
        let mut former = self.former.borrow_mut();
        while let Some(at) = former.iter().position(|app| Rc::strong_count(app) == 1) {
            Rc::into_inner(former.swap_remove(at)).unwrap().abandon();
        }
    }

    async fn look(&self, hands_back: bool, at_rest: bool) -> Observation {
        let now = self.observe(at_rest).await;
        let rolled_back = self.model.borrow_mut().observe(&now, hands_back);
        // While flows overlap, an upload may arrive after the look that proved it absent.
        for key in rolled_back.into_iter().filter(|_| at_rest) {
            let (s3, bucket) = &self.s3;
            let head = s3.head_object().bucket(bucket).key(&key).send().await;
            let absent =
                head.is_err_and(|error| error.as_service_error().is_some_and(|error| error.is_not_found()));
            assert!(absent, "a claim was rolled back and its object is there: {key}");
        }
        now
    }

    fn happen<'a>(&'a self, step: &'a Step) -> std::pin::Pin<Box<dyn Future<Output = ()> + 'a>> {
        Box::pin(async move {
            match step {
                Step::Submit(submit) => self.submit(&[*submit]).await,
                Step::SubmitAtOnce(submits) => self.submit(submits).await,
                Step::HangUp { submit, at } => self.hang_up(*submit, *at).await,
                Step::Look { tenant, key } => self.look_at(*tenant, *key).await,
                Step::Cancel { tenant, key } => self.cancel(*tenant, *key).await,
                Step::Revoke { tenant } => self.revoke(*tenant).await,
                Step::SubmitRevoked(submit) => self.submit_revoked(*submit).await,
                Step::Work => {
                    self.judge(survive(worker::once(self.cx(), Duration::ZERO)).await);
                }
                Step::Shift(ends) => self.shift(*ends).await,
                Step::Pause => self.pause().await,
                Step::ZombieFinishes { .. }
                | Step::ZombieFails { .. }
                | Step::ZombieHandsBack
                | Step::ZombieBeats => self.zombie(step).await,
                Step::Wait { secs } => self.wait(*secs),
                Step::Reap { pass } => {
                    let cx = self.cx();
                    self.judge(survive(Pass::ALL[*pass].once(&cx)).await);
                }
                Step::ReapTwice { passes: [one, two] } => {
                    let cx = self.cx();
                    let both = futures::future::join(Pass::ALL[*one].once(&cx), Pass::ALL[*two].once(&cx));
                    let (one, two) = Box::pin(both).await;
                    self.judge(Ok::<_, ()>(one));
                    self.judge(Ok::<_, ()>(two));
                }
                Step::DeliverTwice
                | Step::HoldBack
                | Step::DeliverLate
                | Step::DeliverAgain
                | Step::DeliverForeign
                | Step::ArriveLate
                | Step::LoseMessages => self.deliver(step).await,
                Step::FlushRedis
                | Step::FlushScripts
                | Step::EvictHolds { .. }
                | Step::SaveRedis
                | Step::RestoreRedis { .. }
                | Step::CutRedis => self.redis(step).await,
                Step::CutDatabase => self.cut_database().await,
                Step::Rebuild { tenant } => {
                    self.judge(survive(rebuild::rebuild(&self.cx(), self.id(*tenant))).await);
                }
                Step::Deposit { tenant, reference, dollars } => {
                    self.deposit(*tenant, *reference, *dollars).await;
                }
                Step::Snapshot { tenant } => {
                    self.judge(survive(snapshot::snapshot(&self.cx(), self.id(*tenant))).await);
                }
                Step::Suspend { tenant } => self.suspend(*tenant, true).await,
                Step::Resume { tenant } => self.suspend(*tenant, false).await,
                Step::Restart { refund } => self.restart(*refund),
                Step::With(outages, step) => self.with(outages, step).await,
                Step::During { step, at, meanwhile } => self.during(step, *at, meanwhile).await,
            }
        })
    }

    // Clients.

    async fn submit(&self, submits: &[Submit]) {
        let app = self.app();
        for submit in submits {
            self.model.borrow_mut().asks(*submit);
        }
        let answers = join_all(submits.iter().map(async |submit| {
            let tenant = self.tenant(submit.tenant);
            app.post(&tenant, &key_text(submit.key), &submit.job.body(submit.cap)).await
        }));
        let answers = answers.await;
        let now = self.observe(false).await;
        for (submit, answer) in submits.iter().zip(&answers) {
            assert_ne!(answer.status, 401, "{answer:?}");
            assert!(self.outages.get() > 0 || answer.status != 500, "without an outage: {answer:?}");
            self.model.borrow_mut().judge(*submit, answer, &now);
        }
    }

    async fn submit_revoked(&self, submit: Submit) {
        let Some((tenant, revoked_at)) = self.revoked.borrow()[submit.tenant].clone() else { return };
        self.model.borrow_mut().asks(submit);
        let remembered = revoked_at.elapsed() <= CALLER_TTL;
        let answer = self.app().post(&tenant, &key_text(submit.key), &submit.job.body(submit.cap)).await;
        assert!(remembered || answer.status == 401, "a revoked key is answered {answer:?}");
        let now = self.observe(false).await;
        self.model.borrow_mut().judge(submit, &answer, &now);
    }

    async fn revoke(&self, tenant: usize) {
        let old = self.tenant(tenant);
        let new = match KEY_MAX[tenant] {
            Some(max) => self.app().limited_key_of(old.id, micros(max)).await,
            None => self.app().key_of(old.id).await,
        };
        let cx = self.cx();
        for key in cx.store.keys(old.id).await.unwrap().into_iter().rev().skip(1) {
            cx.store.revoke_key(key.key_id).await.unwrap().unwrap();
        }
        self.tenants.borrow_mut()[tenant] = new;
        self.revoked.borrow_mut()[tenant] = Some((old, Instant::now()));
    }

    /// A client's connection is reset with its submit under way; what becomes of that it never hears.
    async fn hang_up(&self, submit: Submit, at: CrashPoint) {
        let app = self.app();
        self.model.borrow_mut().asks(submit);
        let pause = app.cx.crash.pause(at);
        let address = app.url.trim_start_matches("http://").to_owned();
        let mut client = tokio::net::TcpStream::connect(&address).await.unwrap();
        client.set_zero_linger().unwrap();
        let body = submit.job.body(submit.cap).to_string();
        let request = format!(
            "POST /v1/runs HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\nIdempotency-Key: {}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.tenant(submit.tenant).key,
            key_text(submit.key),
            body.len(),
        );
        client.write_all(request.as_bytes()).await.unwrap();
        let reached = tokio::select! {
            waiting = pause.reached() => Some(waiting),
            // Answered without coming there.
            _ = client.read_u8() => None,
        };
        app.cx.crash.disarm();
        drop(client);
        self.note("HangUp", reached.is_some());
        if let Some(waiting) = reached {
            // A round trip, so that the server has come to see the reset.
            app.get("/health", "").await;
            waiting.go_on();
        }
        app.idle().await;
    }

    async fn look_at(&self, tenant: usize, key: u8) {
        let run = self.model.borrow().promised(tenant, key).map(|(_, run)| run.to_owned());
        let Some(run_id) = run else { return };
        let answer = self.app().get(&format!("/v1/runs/{run_id}"), &self.tenant(tenant).key).await;
        if self.outages.get() > 0 || self.shaken.get() && answer.status == 503 {
            return;
        }
        let now = self.observe(false).await;
        let row = now.runs.iter().find(|run| run.run_id == run_id).unwrap();
        if answer.status == 410 {
            assert!(row.cost.is_some(), "410 for an open run: {row:?}");
            return;
        }
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.body["status"], row.status, "{answer:?}");
        assert_eq!(answer.body["money_state"], row.money_state, "{answer:?}");
        let cost = row.cost.map_or(json!(null), |cost| json!(usd(cost)));
        assert_eq!(answer.body["actual_cost_usd"], cost, "{answer:?}");
    }

    async fn cancel(&self, tenant: usize, key: u8) {
        let run = self.model.borrow().promised(tenant, key).map(|(_, run)| run.to_owned());
        let Some(run_id) = run else { return };
        self.model.borrow_mut().cancels(&run_id);
        let app = self.app();
        let request = app.request(reqwest::Method::POST, &format!("/v1/runs/{run_id}/cancel"));
        let answer = app.send(request.bearer_auth(&self.tenant(tenant).key)).await;
        let now = self.observe(false).await;
        let row = now.runs.iter().find(|run| run.run_id == run_id).unwrap();
        match (answer.status, answer.slug()) {
            (200, _) => assert_eq!((row.status.as_str(), row.cost), ("CANCELLED", Some(0)), "{answer:?}"),
            (202, _) => {}
            (409, "run-not-cancellable") | (410, "run-expired") => {
                assert!(row.cost.is_some(), "refused for an open run: {row:?}");
            }
            (500 | 503, _) if self.outages.get() > 0 || self.shaken.get() => {}
            other => panic!("{other:?}: {answer:?}"),
        }
    }

    // Operators.

    async fn deposit(&self, tenant: usize, reference: u8, dollars: i64) {
        let (reference, amount) = (format!("r{reference}"), dollars * 1_000_000);
        self.model.borrow_mut().deposits(tenant, &reference, amount);
        let cx = self.cx();
        let deposit = deposit::deposit(&cx, self.id(tenant), micros(amount), &reference);
        let outcome = self.judge(survive(deposit).await);
        let now = self.observe(false).await;
        let booked = match outcome {
            Some(Some(Deposit::Posted | Deposit::Already)) => amount,
            Some(Some(Deposit::ReferenceReused { amount: other })) => {
                assert_ne!(other.get(), amount);
                other.get()
            }
            // What died is tried again by nobody: the ledger decides.
            None => return,
            other => panic!("{other:?}"),
        };
        self.model.borrow_mut().acknowledged(tenant, &reference, booked, &now);
    }

    async fn suspend(&self, tenant: usize, suspended: bool) {
        let set = self.cx().store.set_suspended(self.id(tenant), suspended).await;
        assert!(self.judge(Ok::<_, ()>(set)).unwrap_or(true), "no such tenant");
    }

    fn restart(&self, refund: bool) {
        self.model.borrow_mut().refund[1] = refund;
        let policy = if refund { "refund" } else { "minimum_fee" };
        let new = TestApp::on(self.place.clone(), &[("REAPER_LEASE_POLICY", policy)]);
        new.script.go_on();
        let old = self.app.replace(Rc::new(new));
        self.former.borrow_mut().push(old);
    }

    // Workers.

    async fn pause(&self) {
        let cx = self.cx();
        let taken = async {
            let messages =
                cx.queue.receive(1, LEASE, Duration::ZERO).await.map_err(dpp::flow::Error::from)?;
            take::take(&cx, messages).await
        };
        let Some(taken) = self.judge(survive(taken).await) else { return };
        self.paused.borrow_mut().extend(taken.leased.into_iter().map(|(run, _)| run));
        take::dismiss(&cx, taken.rest).await;
    }

    async fn zombie(&self, step: &Step) {
        let cx = self.cx();
        if matches!(step, Step::ZombieBeats) {
            let leases: Vec<_> = self.paused.borrow().iter().map(|run| (run.run_id, run.token)).collect();
            self.judge(Ok::<_, ()>(cx.store.beat(&leases, LEASE).await));
            return;
        }
        let Some(run) = self.paused.borrow_mut().pop() else { return };
        let run_id = run.run_id.to_string();
        let seen = async || self.observe(false).await.runs.into_iter().find(|row| row.run_id == run_id);
        let before = seen().await.expect("no run goes");
        let holds = before.lease == Some(run.token.to_string());
        let outcome = match *step {
            Step::ZombieFinishes { cost_micros } => {
                let cost = micros(cost_micros).min(run.reserved);
                if holds {
                    self.model.borrow_mut().delivers(run.token.to_string(), cost.get());
                }
                let product = dpp::pack::Product { data: json!({"late": true}), logs: Vec::new() };
                survive(finish::finish(&cx, &run, "1", &product, cost, chrono::Utc::now())).await
            }
            Step::ZombieFails { used_micros } => {
                let used = micros(used_micros).min(run.reserved);
                if holds {
                    self.model.borrow_mut().fails(run_id.clone(), used.get());
                }
                survive(finish::fail(&cx, &run, used, Reason::pack_crashed())).await
            }
            _ => survive(finish::hand_back(&cx, &run)).await,
        };
        self.judge(outcome);
        if !holds && self.held_up.get() == 0 {
            let after = seen().await.expect("no run goes");
            assert_eq!(after, before, "P4: a worker without its lease has changed its run");
        }
    }

    /// A worker with its beat takes what is in the queue. Packs that wait keep it at work until the shift ends.
    async fn shift(&self, ends: Ends) {
        let app = self.app();
        let cx = &app.cx;
        app.script.hold();
        let (soft, hard) = (CancellationToken::new(), CancellationToken::new());
        let worker = tokio::spawn(worker::run(Arc::clone(cx), 16, soft.clone(), hard.clone()));
        until("the queue is empty", async || {
            worker.is_finished() || cx.queue.depth().await.is_ok_and(|depth| depth == 0)
        })
        .await;
        let waits = "SELECT FROM runs WHERE lease_token IS NOT NULL AND inputs::text LIKE '%\"wait\"%'";
        if !self.sql.query(waits, &[]).await.unwrap().is_empty() {
            // At least one beat, if what waits is this worker's.
            cx.crash.passed();
            let beaten = async {
                while !cx.crash.passed().contains(&CrashPoint::BeatRenew) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            let beaten = tokio::time::timeout(BEATS_MAX, beaten).await.is_ok();
            if beaten && ends == Ends::LeasesLost {
                let pause = cx.crash.pause(CrashPoint::BeatRenew);
                if let Ok(waiting) = tokio::time::timeout(BEATS_MAX, pause.reached()).await {
                    self.wait(4);
                    self.judge(survive(Pass::Leases.once(cx)).await);
                    waiting.go_on();
                }
            }
        }
        soft.cancel();
        match ends {
            Ends::Done => app.script.go_on(),
            Ends::HandsBack => hard.cancel(),
            // Its packs wait until the beat stops them, or, where it could not be held up, go on.
            Ends::LeasesLost => {
                cx.crash.disarm();
                app.script.go_on();
            }
        }
        self.judge(worker.await.map(Ok::<_, ()>));
        app.script.go_on();
    }

    fn wait(&self, secs: i64) {
        self.model.borrow_mut().clock += secs;
        self.app().move_clock(TimeDelta::seconds(secs));
        for former in self.former.borrow().iter() {
            former.cx.store.move_clock(TimeDelta::seconds(secs));
        }
    }

    // The queue.

    fn queue(&self) -> &str {
        &self.place.environment["SQS_QUEUE_URL"]
    }

    async fn send(&self, body: &str) {
        self.sqs.send_message().queue_url(self.queue()).message_body(body).send().await.unwrap();
    }

    /// Takes all messages that wait out of the queue.
    async fn drain(&self) -> Vec<String> {
        let mut bodies = Vec::new();
        loop {
            let receive = self.sqs.receive_message().queue_url(self.queue()).max_number_of_messages(10);
            let received = receive.send().await.unwrap().messages.unwrap_or_default();
            if received.is_empty() {
                return bodies;
            }
            for message in received {
                let handle = message.receipt_handle.unwrap();
                self.sqs
                    .delete_message()
                    .queue_url(self.queue())
                    .receipt_handle(handle)
                    .send()
                    .await
                    .unwrap();
                bodies.push(message.body.unwrap());
            }
        }
    }

    async fn deliver(&self, step: &Step) {
        match step {
            Step::DeliverTwice => {
                for body in self.drain().await {
                    self.send(&body).await;
                    self.send(&body).await;
                }
            }
            Step::HoldBack => {
                let bodies = self.drain().await;
                self.held_back.borrow_mut().extend(bodies);
            }
            Step::DeliverLate => {
                let bodies = self.held_back.borrow().clone();
                for body in bodies {
                    self.send(&body).await;
                }
            }
            Step::DeliverAgain => {
                let cx = self.cx();
                let again = async {
                    let now = cx.store.now().await?;
                    cx.store.resend_all().await?;
                    for due in cx.store.due_sends(LEASE, false, 100).await? {
                        resend::resend(&cx, &due, false, now).await?;
                    }
                    Ok::<_, dpp::flow::Error>(())
                };
                self.judge(survive(again).await);
            }
            Step::DeliverForeign => self.send("not ours").await,
            Step::ArriveLate => {
                self.wire.s3.release().await;
                self.wire.sqs.release().await;
            }
            _ => drop(self.drain().await),
        }
    }

    // Redis and PostgreSQL.

    async fn command<T: redis::FromRedisValue>(&self, command: &redis::Cmd) -> T {
        command.query_async(&mut self.redis.clone()).await.unwrap()
    }

    fn budget_key(&self, tenant: usize, name: &str) -> String {
        format!("dpp:{{{}}}:{name}", self.id(tenant))
    }

    async fn redis(&self, step: &Step) {
        match step {
            Step::FlushRedis => self.command(&redis::cmd("FLUSHDB")).await,
            Step::FlushScripts => self.command(redis::cmd("SCRIPT").arg("FLUSH")).await,
            Step::EvictHolds { tenant } => {
                self.command::<()>(redis::cmd("DEL").arg(self.budget_key(*tenant, "holds"))).await;
                self.model.borrow_mut().evicts(*tenant);
            }
            Step::SaveRedis => {
                let mut saved = Vec::new();
                for key in self.command::<Vec<String>>(redis::cmd("KEYS").arg("*")).await {
                    saved.push((key.clone(), self.command(redis::cmd("DUMP").arg(&key)).await));
                }
                *self.saved.borrow_mut() = saved;
            }
            Step::RestoreRedis { tenant } => self.restore_redis(*tenant).await,
            _ => {
                self.shaken.set(true);
                let clients: String = self.command(redis::cmd("CLIENT").arg("LIST")).await;
                let space = self.place.redis_url.rsplit('/').next().unwrap();
                let own: i64 = self.command(redis::cmd("CLIENT").arg("ID")).await;
                for line in clients.lines().filter(|line| line.contains(&format!(" db={space} "))) {
                    let id = line.split(' ').next().unwrap().trim_start_matches("id=");
                    if id != own.to_string() {
                        self.command::<i64>(redis::cmd("CLIENT").arg("KILL").arg("ID").arg(id)).await;
                    }
                }
            }
        }
    }

    async fn restore_redis(&self, tenant: Option<usize>) {
        let of = tenant.map_or_else(|| "dpp:".to_owned(), |tenant| self.budget_key(tenant, ""));
        let there: Vec<String> = self.command(redis::cmd("KEYS").arg("*")).await;
        for key in there.iter().filter(|key| key.starts_with(&of)) {
            self.command::<()>(redis::cmd("DEL").arg(key)).await;
        }
        let saved = self.saved.borrow().clone();
        for (key, value) in saved.iter().filter(|(key, _)| key.starts_with(&of)) {
            self.command::<()>(redis::cmd("RESTORE").arg(key).arg(0).arg(value)).await;
            if key.ends_with(":budget") {
                self.command::<()>(redis::cmd("HSET").arg(key).arg("server").arg("the one before")).await;
            }
        }
    }

    async fn cut_database(&self) {
        self.shaken.set(true);
        self.sql.simple_query(TERMINATE).await.unwrap();
    }

    // What fails, and what happens meanwhile.

    fn note(&self, fault: &str, struck: bool) {
        let mut done = self.done.borrow_mut();
        *done.made.entry(fault.to_owned()).or_default() += 1;
        *done.struck.entry(fault.to_owned()).or_default() += usize::from(struck);
    }

    async fn with(&self, outages: &[Outage], step: &Step) {
        let app = self.app();
        self.outages.set(self.outages.get() + 1);
        let before = (self.wire.s3.met(), self.wire.sqs.met());
        for outage in outages {
            match outage {
                Outage::At(at, fault) => app.cx.crash.arm(*at, *fault),
                Outage::S3(operation, fault, times) => {
                    self.wire.s3.set(*fault, Which::operation(operation), *times);
                }
                Outage::Sqs(operation, fault, times) => {
                    self.wire.sqs.set(*fault, Which::operation(operation), *times);
                }
                Outage::Database => {}
            }
            if matches!(outage, Outage::S3(_, Fault::Hang, _) | Outage::Sqs(_, Fault::Hang, _)) {
                self.hurry.hanging.store(true, Ordering::Relaxed);
            }
        }
        let mut cut = false;
        if outages.iter().any(|outage| matches!(outage, Outage::Database)) {
            cut = self.cut_midway(step).await;
        } else {
            self.happen(step).await;
        }
        for outage in outages {
            match outage {
                Outage::At(at, fault) => self.note(&format!("{at:?} {fault:?}"), app.cx.crash.fired()),
                Outage::S3(operation, fault, _) => {
                    self.note(&format!("{operation} {fault:?}"), self.wire.s3.met() > before.0);
                }
                Outage::Sqs(operation, fault, _) => {
                    self.note(&format!("{operation} {fault:?}"), self.wire.sqs.met() > before.1);
                }
                Outage::Database => self.note("sessions cut midway", cut),
            }
        }
        // What was not reached must not go off in a later step.
        app.cx.crash.disarm();
        self.wire.s3.clear();
        self.wire.sqs.clear();
        self.hurry.hanging.store(false, Ordering::Relaxed);
        self.outages.set(self.outages.get() - 1);
    }

    /// Lets the step's first write wait, and cuts all sessions while it does.
    async fn cut_midway(&self, step: &Step) -> bool {
        self.shaken.set(true);
        let holder = observer(&self.place).await;
        let lock = "BEGIN; LOCK TABLE tenants, runs, ledger_transfers, ledger_snapshots IN EXCLUSIVE MODE";
        holder.batch_execute(lock).await.unwrap();
        let (done, mut cut) = (Cell::new(false), false);
        let happen = async {
            self.happen(step).await;
            done.set(true);
        };
        let strike = async {
            let waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() \
                 AND application_name = 'dpp' AND wait_event_type = 'Lock'";
            while !done.get() && !cut {
                cut = !holder.query(waiting, &[]).await.unwrap().is_empty();
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            if cut {
                holder.batch_execute(TERMINATE).await.unwrap();
            }
            holder.batch_execute("ROLLBACK").await.unwrap();
        };
        tokio::join!(happen, strike);
        cut
    }

    async fn during(&self, step: &Step, at: CrashPoint, meanwhile: &[Step]) {
        let app = self.app();
        let pause = app.cx.crash.pause(at);
        let done = Cell::new(false);
        // Whoever was held up may find anything; what happens meanwhile may be held up by it.
        self.outages.set(self.outages.get() + 1);
        self.held_up.set(self.held_up.get() + 1);
        let happen = async {
            self.happen(step).await;
            done.set(true);
            // If it never came there.
            app.cx.crash.disarm();
        };
        let others = async {
            let waiting = pause.reached().await;
            let reached = !done.get();
            self.note(&format!("{at:?} held up"), reached);
            for step in meanwhile {
                self.happen(step).await;
                self.look(hands_back(step), false).await;
            }
            waiting.go_on();
        };
        tokio::join!(happen, others);
        self.held_up.set(self.held_up.get() - 1);
        self.outages.set(self.outages.get() - 1);
    }

    // What is seen from outside.

    async fn observe(&self, at_rest: bool) -> Observation {
        let ids: Vec<_> = self.tenants.borrow().iter().map(|tenant| tenant.id.to_string()).collect();
        let number = |id: &str| ids.iter().position(|known| known == id).unwrap();
        let mut now = Observation {
            runs: Vec::new(),
            books: vec![Books::default(); TENANTS],
            deposits: Vec::new(),
            at_rest,
        };
        let mut gates = Vec::new();
        for tenant in 0..TENANTS {
            let mut ask = redis::pipe();
            ask.hgetall(self.budget_key(tenant, "budget")).hgetall(self.budget_key(tenant, "holds"));
            let gate: (BTreeMap<String, String>, BTreeMap<String, i64>) =
                ask.query_async(&mut self.redis.clone()).await.unwrap();
            gates.push(gate);
        }
        let observe = OBSERVE.replace("{clock}", &self.model.borrow().clock.to_string());
        for message in self.sql.simple_query(&observe).await.unwrap() {
            let tokio_postgres::SimpleQueryMessage::Row(row) = message else { continue };
            let text = |column: usize| row.get(column).map(str::to_owned);
            let amount = |column: usize| row.get(column).map(|text| text.parse::<i64>().unwrap());
            match row.get(0) {
                Some("run") => now.runs.push(RunRow {
                    run_id: text(1).unwrap(),
                    tenant: number(row.get(2).unwrap()),
                    key: text(3).unwrap(),
                    order: text(4),
                    status: text(5).unwrap(),
                    money_state: text(6).unwrap(),
                    reserved: amount(7).unwrap(),
                    cost: amount(8),
                    attempts: amount(9).unwrap(),
                    result_key: text(10),
                    reason: text(11),
                    lease: text(12),
                }),
                Some("books") => {
                    let tenant = number(row.get(1).unwrap());
                    let (budget, holds) = std::mem::take(&mut gates[tenant]);
                    let known = budget.get("epoch").map(String::as_str) == row.get(2)
                        && budget.get("server") == Some(&self.server);
                    let available = budget.get("available").and_then(|available| available.parse().ok());
                    let sum = |column: usize| amount(column).unwrap_or(0);
                    now.books[tenant] = Books {
                        suspended: row.get(3) != Some("ACTIVE"),
                        deposited: sum(4),
                        available: sum(5),
                        held: sum(6),
                        charged: sum(7),
                        open: sum(8),
                        cost: sum(9),
                        of_month: sum(10),
                        of_keys: sum(11),
                        gate: available.filter(|_| known).map(|available| Gate { available, holds }),
                    };
                }
                Some("deposit") => {
                    now.deposits.push((number(row.get(1).unwrap()), text(2).unwrap(), amount(3).unwrap()));
                }
                other => panic!("{other:?}"),
            }
        }
        now
    }

    /// The faults end, and everything comes to rest; then the promises hold, what was answered is true, and
    /// each client that tries again has its one run.
    pub async fn end(&self) {
        self.deliver(&Step::ArriveLate).await;
        for tenant in 0..TENANTS {
            until("the tenant may buy again", async || {
                self.cx().store.set_suspended(self.id(tenant), false).await.is_ok()
            })
            .await;
        }
        // Connections that were cut are noticed by whoever draws them.
        for _ in 0..CONNECTIONS_MAX {
            drop(self.cx().budget.ping().await);
        }
        self.outages.set(0);
        self.shaken.set(false);
        self.wait(20);
        self.app().quiet().await;
        let now = self.look(false, true).await;
        self.model.borrow().rest(&now);
        for tenant in 0..TENANTS {
            // Money is right by now; what an eviction left beside the holds goes with the next rebuild.
            if self.model.borrow().ever_evicted(tenant) {
                rebuild::rebuild(&self.cx(), self.id(tenant)).await.unwrap();
            }
        }
        // The API remembers a suspended tenant for a moment.
        self.restart(false);
        let asked = self.model.borrow().asked();
        for submit in &asked {
            self.submit(std::slice::from_ref(submit)).await;
        }
        self.wait(20);
    }

    /// Ends its use, with a last check of the promises.
    pub async fn finish(self) {
        for app in self.former.into_inner() {
            Rc::into_inner(app).expect("no flow is under way").abandon();
        }
        Rc::into_inner(self.app.into_inner()).expect("no flow is under way").finish().await;
    }

    /// What is to be given back, also by a world that broke.
    pub fn lent(&self) -> Place {
        self.lent.clone()
    }
}

/// Whether attempts may be handed back in a step.
fn hands_back(step: &Step) -> bool {
    match step {
        Step::ZombieHandsBack | Step::Shift(_) => true,
        Step::With(_, step) => hands_back(step),
        Step::During { step, meanwhile, .. } => hands_back(step) || meanwhile.iter().any(hands_back),
        _ => false,
    }
}

const TERMINATE: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
     WHERE datname = current_database() AND application_name = 'dpp'";

/// One snapshot of everything.
const OBSERVE: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SELECT 'run', run_id, tenant_id, idempotency_key, metadata->>'order', status, money_state,
    reserved_usd_micros, actual_cost_usd_micros, attempts, result_key, reason_code, lease_token FROM runs;
SELECT 'books', tenant.tenant_id, budget_epoch, status,
    (SELECT sum(amount_usd_micros) FROM ledger_transfers AS entry
     WHERE entry.tenant_id = tenant.tenant_id AND debit_account = 'funding'),
    (SELECT sum(CASE 'available' WHEN credit_account THEN amount_usd_micros WHEN debit_account
        THEN -amount_usd_micros END) FROM ledger_transfers AS entry WHERE entry.tenant_id = tenant.tenant_id),
    (SELECT sum(CASE 'held' WHEN credit_account THEN amount_usd_micros WHEN debit_account
        THEN -amount_usd_micros END) FROM ledger_transfers AS entry WHERE entry.tenant_id = tenant.tenant_id),
    (SELECT sum(amount_usd_micros) FROM ledger_transfers AS entry
     WHERE entry.tenant_id = tenant.tenant_id AND credit_account = 'revenue'),
    (SELECT sum(reserved_usd_micros) FROM runs WHERE runs.tenant_id = tenant.tenant_id AND completed_at IS NULL),
    (SELECT sum(actual_cost_usd_micros) FROM runs WHERE runs.tenant_id = tenant.tenant_id),
    (SELECT sum(coalesce(actual_cost_usd_micros, reserved_usd_micros)) FROM runs
     WHERE runs.tenant_id = tenant.tenant_id AND (completed_at IS NULL
        OR completed_at >= date_trunc('month', now() + {clock} * interval '1 second', 'UTC'))),
    (SELECT max(spent) FROM (
        SELECT sum(coalesce(actual_cost_usd_micros, reserved_usd_micros)) AS spent
        FROM runs WHERE runs.tenant_id = tenant.tenant_id GROUP BY key_id) AS key)
FROM tenants AS tenant;
SELECT 'deposit', tenant_id, reference, amount_usd_micros FROM ledger_transfers WHERE kind = 'deposit';
COMMIT";
