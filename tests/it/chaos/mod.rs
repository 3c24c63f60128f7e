//! Chaos: the built binary as real processes (2 API, 3 workers, 2 reapers), under load, while all of them
//! are killed and paused, PostgreSQL and Redis crash, and S3 and SQS go away.
//!
//! At every sampled instant no tenant has spent more than it paid in and no run contradicts the ledger.
//! Afterwards every accepted run has ended in time, every answer that a buyer ever had agrees with how it
//! ended, and the auditor finds nothing.
//!
//! A seed names what goes wrong, not when it meets whom: these are processes. `CHAOS_SEED`, `CHAOS_SECS`;
//! `make chaos SECS=300`.

mod gremlin;
mod load;
pub mod servers;

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
    sync::Arc,
    time::Duration,
};

use dpp::{
    flow::deposit::deposit,
    local::services::Cloud,
    store::{self, Deposit},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::{
    gremlin::Gremlin,
    load::{Market, Order, buyer, slow_page},
    servers::Servers,
};
use crate::harness::{
    Tenant, TestApp,
    process::dpp,
    say,
    services::{Place, own_directory, prepare},
    wire::Wire,
};

const TENANTS: usize = 5;
const BUYERS_EACH: usize = 3;
const SECS: u64 = 20;
/// What each tenant begins with, and what it is given time and again: seldom enough for all it wants.
const DEPOSIT: &str = "1";

/// What differs from a test's usual settings: nothing is so short that it would never be met.
const SETTINGS: [(&str, &str); 7] = [
    ("HEARTBEAT_SEC", "1"),
    ("REAPER_INTERVAL_SEC", "0.5"),
    ("RECONCILE_INTERVAL_SEC", "0.5"),
    ("RESERVATION_GRACE_SEC", "2"),
    ("DATABASE_CONNECTIONS_MAX", "4"),
    ("REDIS_CONNECTIONS_MAX", "4"),
    ("REAPER_LEASE_POLICY", "minimum_fee"),
];

/// How long a worker rests at most after failures before it asks for messages again.
const WORKER_REST: Duration = Duration::from_secs(5);
/// By when the gate has caught up with the ledger: a reservation's grace and some passes of the sweep.
const AUDIT_MAX: Duration = Duration::from_secs(10);
/// What a machine with two busy cores may add.
const SLOWNESS: Duration = Duration::from_secs(5);

/// Rows of the ledger and of runs that contradict one another, in one snapshot. None at any instant.
const CONTRADICTIONS: &str = "
    WITH booked AS (
        SELECT run_id, count(*) FILTER (WHERE kind = 'hold') AS holds, count(*) AS entries,
            sum(amount_usd_micros) FILTER (WHERE kind = 'hold') AS hold,
            coalesce(sum(amount_usd_micros) FILTER (WHERE kind = 'charge'), 0) AS charge,
            coalesce(sum(amount_usd_micros) FILTER (WHERE kind = 'release'), 0) AS release
        FROM ledger_transfers WHERE run_id IS NOT NULL GROUP BY run_id
    )
    SELECT run.run_id, run.status, run.money_state, run.reserved_usd_micros, run.actual_cost_usd_micros,
        booked.hold, booked.charge, booked.release
    FROM runs AS run FULL JOIN booked USING (run_id)
    WHERE (run.run_id IS NOT NULL AND booked.holds = 1 AND booked.hold = run.reserved_usd_micros
        AND CASE WHEN run.completed_at IS NULL THEN booked.entries = 1
            ELSE booked.charge = run.actual_cost_usd_micros AND booked.charge + booked.release = booked.hold END
        ) IS NOT TRUE";

/// What each tenant has, in one snapshot.
const BOOKS: &str = "
    SELECT tenant_id,
        coalesce(sum(amount_usd_micros) FILTER (WHERE kind = 'deposit'), 0)::bigint,
        coalesce(sum(amount_usd_micros) FILTER (WHERE credit_account = 'held'), 0)::bigint
            - coalesce(sum(amount_usd_micros) FILTER (WHERE debit_account = 'held'), 0)::bigint,
        coalesce(sum(amount_usd_micros) FILTER (WHERE credit_account = 'revenue'), 0)::bigint
    FROM ledger_transfers GROUP BY tenant_id";

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().filter(|text| !text.is_empty()).map(|text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_money_leaks_from_real_processes_under_chaos() {
    prepare();
    let seed = setting("CHAOS_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let time = Duration::from_secs(setting("CHAOS_SECS").unwrap_or(SECS));
    let directory = own_directory().join("chaos");
    std::fs::create_dir_all(&directory).unwrap();
    say(&format!("chaos: seed {seed}, {} s, logs in {}", time.as_secs(), directory.display()));

    let servers = Servers::start(&directory).await;
    let cloud = Cloud::start(&directory).await.unwrap();
    let (place, wire) = place(&servers, &cloud).await;
    let app = TestApp::on(place.clone(), &[]);
    let mut tenants = Vec::new();
    for _ in 0..TENANTS {
        tenants.push(app.tenant(DEPOSIT).await);
    }
    let mut gremlin = Gremlin::new(place.clone(), &directory, servers, wire, seed);
    gremlin.calm().await;

    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let page_url = format!("http://{}/", listener.local_addr().unwrap());
    let market = Arc::new(Market::new(gremlin.api_urls(), page_url));
    let over = CancellationToken::new();
    let mut beside = JoinSet::new();
    beside.spawn(slow_page(listener, seed));
    let sampler = tokio::spawn(sample(place.database_url.clone(), over.clone()));
    let patron = tokio::spawn(give(Arc::clone(&app.cx), tenants.clone(), Arc::clone(&market)));
    let mut buyers = JoinSet::new();
    for (index, tenant) in tenants.iter().enumerate() {
        for number in 0..BUYERS_EACH {
            let (market, tenant) = (Arc::clone(&market), tenant.clone());
            let seed = seed.wrapping_mul(31).wrapping_add((index * BUYERS_EACH + number) as u64);
            buyers.spawn(async move { buyer(&market, (index, &tenant), number, seed).await });
        }
    }

    gremlin.rage(time).await;
    gremlin.calm().await;
    let faults_end = place.sql("SELECT statement_timestamp()").await[0][0].clone().unwrap();
    market.closed.cancel();
    let deposits = patron.await.unwrap();
    let mut orders: Vec<Order> = buyers.join_all().await.into_iter().flatten().collect();

    let calm_secs = every_run_ends_in_time(&app, &faults_end).await;
    the_histories_agree(&app, &market, &tenants, &mut orders).await;
    for (tenant, paid_in) in tenants.iter().zip(deposits) {
        assert_eq!(app.cx.store.balance(tenant.id).await.unwrap().deposited.get(), paid_in, "{tenant:?}");
    }
    the_auditor_finds_nothing(&place).await;
    over.cancel();
    let samples = sampler.await.unwrap();
    gremlin.retire().await;
    for (name, log) in gremlin.logs() {
        let bad: Vec<_> =
            log.lines().filter(|line| line.contains("CRITICAL") || line.contains("panicked")).collect();
        assert!(bad.is_empty(), "{name}: {bad:?}");
    }
    app.finish().await;
    beside.shutdown().await;
    let accepted = orders.iter().filter(|order| order.run_id.is_some()).count();
    assert!(accepted > 0 && samples > 0, "nothing was bought, or nobody looked");
    say(&tally(&gremlin.deeds, &market, &orders, samples));
    say(&format!("  the slowest run took {calm_secs} s of calm"));
}

async fn place(servers: &Servers, cloud: &Cloud) -> (Place, Wire) {
    servers.make_database("chaos").await;
    let database_url = servers.database_url("chaos");
    store::migrate(&database_url.clone().into()).await.unwrap();
    let places = cloud.places("dpp-chaos", 3).await.unwrap();
    let mut settings = cloud.settings(&places);
    settings.push(("DATABASE_URL", database_url));
    settings.push(("REDIS_URL", servers.redis_url()));
    settings.extend(SETTINGS.map(|(name, value)| (name, value.to_owned())));
    let mut place = Place::new(settings, cloud.aws());
    let wire = Wire::between(&mut place);
    (place, wire)
}

/// Deposits to tenants in turn, each under a reference of its own, again and again until it is in the
/// books. Returns what each has paid in.
async fn give(cx: Arc<dpp::flow::Ctx>, tenants: Vec<Tenant>, market: Arc<Market>) -> Vec<i64> {
    let amount: dpp::domain::money::UsdMicros = DEPOSIT.parse().unwrap();
    let mut paid_in = vec![amount.get(); tenants.len()];
    let mut ticks = tokio::time::interval(Duration::from_millis(1_500));
    for number in 0.. {
        if market.closed.is_cancelled() {
            break;
        }
        let at = number % tenants.len();
        let reference = format!("gift-{number}");
        loop {
            ticks.tick().await;
            match deposit(&cx, tenants[at].id, amount, &reference).await {
                Ok(Some(Deposit::Posted | Deposit::Already)) => break,
                Err(error) if error.passes() => market.count("deposits tried again"),
                other => panic!("{other:?}"),
            }
        }
        paid_in[at] += amount.get();
    }
    paid_in
}

/// Looks at the books all through, by a connection of its own. Returns how often.
async fn sample(database_url: String, over: CancellationToken) -> u64 {
    let mut samples = 0;
    while !over.is_cancelled() {
        let Ok((client, connection)) = tokio_postgres::connect(&database_url, tokio_postgres::NoTls).await
        else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let driver = tokio::spawn(connection);
        while !over.is_cancelled() {
            let began = tokio::time::Instant::now();
            let (Ok(books), Ok(wrong)) =
                (client.query(BOOKS, &[]).await, client.simple_query(CONTRADICTIONS).await)
            else {
                break;
            };
            for row in books {
                let number = |column: usize| row.get::<_, i64>(column);
                let (deposited, held, charged) = (number(1), number(2), number(3));
                assert!(
                    held >= 0 && charged >= 0 && held + charged <= deposited,
                    "P2: {held} held and {charged} charged of {deposited}"
                );
            }
            let wrong: Vec<_> = wrong
                .iter()
                .filter_map(|message| match message {
                    tokio_postgres::SimpleQueryMessage::Row(row) => Some(
                        (0..row.len()).map(|column| row.get(column).unwrap_or("NULL")).collect::<Vec<_>>(),
                    ),
                    _ => None,
                })
                .collect();
            assert!(wrong.is_empty(), "P3: runs that contradict the ledger: {wrong:?}");
            samples += 1;
            // At most a fifth of the database's time, however long the books have become.
            tokio::time::sleep((began.elapsed() * 4).max(Duration::from_millis(50))).await;
        }
        driver.abort();
    }
    samples
}

/// P7: every run has ended within its timebox, a lease, a claim's threshold and one interval of each pass
/// from when it was accepted or the faults ended, by the database's own clock. Returns the seconds that the
/// slowest took.
async fn every_run_ends_in_time(app: &TestApp, faults_end: &str) -> String {
    let pace = &app.cx.pace;
    let beyond = pace.lease
        + pace.reaper_interval
        + pace.reconcile_threshold
        + pace.reconcile_interval
        + WORKER_REST
        + SLOWNESS;
    let late = format!(
        "SELECT run_id, status, attempts, created_at, started_at, claimed_at, completed_at, next_send_at, statement_timestamp()
         FROM runs WHERE coalesce(completed_at, statement_timestamp())
            > greatest(created_at, '{faults_end}') + timebox_secs * interval '1 second' + interval '{} ms'",
        beyond.as_millis(),
    );
    loop {
        let late = app.place.sql(&late).await;
        assert!(late.is_empty(), "P7: faults ended at {faults_end}, late by more than {beyond:?}: {late:?}");
        if app.place.sql("SELECT 1 FROM runs WHERE completed_at IS NULL LIMIT 1").await.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let slowest = format!(
        "SELECT round(max(extract(epoch FROM completed_at - greatest(created_at, '{faults_end}'))), 1) FROM runs",
    );
    app.place.sql(&slowest).await[0][0].clone().unwrap_or_default()
}

/// P6, P3: each key has the run that it was answered with and no other; what was seen as ended has stayed
/// so; a refused key has no run.
async fn the_histories_agree(app: &TestApp, market: &Market, tenants: &[Tenant], orders: &mut [Order]) {
    let rows = app.place.sql("SELECT tenant_id, idempotency_key, run_id, money_state FROM runs").await;
    let mut runs = BTreeMap::new();
    for row in rows {
        let text = |column: usize| row[column].clone().unwrap();
        assert_ne!(text(3), "AUDIT_REQUIRED", "{row:?}");
        runs.insert((text(0), text(1)), text(2));
    }
    let mut answered = HashSet::new();
    for order in orders {
        let tenant = &tenants[order.tenant];
        let run = runs.get(&(tenant.id.to_string(), order.key.clone()));
        match (&order.run_id, run) {
            (Some(told), Some(run)) => assert_eq!(told, run, "{order:?}"),
            (Some(_), None) => panic!("an accepted run is gone: {order:?}"),
            (None, None) => assert!(order.refused, "{order:?}"),
            // An attempt without an answer, by a process that was paused, was admitted after the refusal.
            (None, Some(_)) => assert!(order.refused && order.doubtful, "a refused key has a run: {order:?}"),
        }
        if let Some(run_id) = order.run_id.clone() {
            for url in 0..market.urls.len() {
                let run = market.get(url, tenant, &run_id).await.expect("nothing is broken");
                order.see_run(&run);
                assert!(order.ended.is_some(), "{run}");
            }
        }
        answered.extend(run.cloned());
    }
    let unasked: Vec<_> = runs.values().filter(|run| !answered.contains(*run)).collect();
    assert!(unasked.is_empty(), "runs that nobody ordered: {unasked:?}");
}

/// `dpp audit --receipts`, as soon as the sweep has let go of what the dead had reserved.
async fn the_auditor_finds_nothing(place: &Place) {
    let end = tokio::time::Instant::now() + AUDIT_MAX;
    loop {
        let (code, out, err) = dpp(place, &["audit", "--receipts"]).await;
        if code == 0 {
            return;
        }
        assert!(tokio::time::Instant::now() < end, "{code}: {out} {err}");
    }
}

fn tally(deeds: &BTreeMap<String, u64>, market: &Market, orders: &[Order], samples: u64) -> String {
    let accepted = orders.iter().filter(|order| order.run_id.is_some()).count();
    let ended = |status: &str| {
        let ends = orders.iter().filter_map(|order| order.ended.as_ref());
        ends.filter(|ended| ended["status"] == status).count()
    };
    let mut text = format!(
        "chaos: {} orders, {accepted} accepted ({} completed, {} failed), {samples} samples of the books\n",
        orders.len(),
        ended("COMPLETED"),
        ended("FAILED"),
    );
    for (what, count) in market.counts.lock().unwrap().iter() {
        write!(text, "  {what}: {count}").unwrap();
    }
    for (deed, count) in deeds {
        write!(text, "\n  {count:>4} {deed}").unwrap();
    }
    text
}
