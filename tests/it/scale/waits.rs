//! A thousand clients that wait for their runs, and what a read of a run costs.

use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use reqwest::Client;
use serde_json::Value;

use super::print;
use crate::harness::{Tenant, TestApp, decision, process::Process, until};

const CLIENTS: usize = 1_000;
const WAITED: Duration = Duration::from_secs(10);
const READS: usize = 20_000;
const READERS: usize = 8;

/// How long a process has had a CPU.
fn cpu(process: &Process) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
    let after_name: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // utime and stime, in ticks of a hundredth of a second.
    let ticks = after_name[11].parse::<u64>().unwrap() + after_name[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

async fn connections(app: &TestApp) -> String {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dpp' AND datname = current_database()";
    app.place.sql(sql).await[0][0].clone().unwrap()
}

fn percentiles(mut all: Vec<Duration>) -> (Duration, Duration, Duration) {
    all.sort();
    let at = |percent: usize| all[(all.len() - 1) * percent / 100];
    (at(50), at(99), at(100))
}

/// Waits for a new run; when it was answered, after the run had ended.
async fn wait(client: &Client, url: &str, tenant: &Tenant, number: usize) -> Duration {
    let request = client
        .post(format!("{url}/v1/runs"))
        .bearer_auth(&tenant.key)
        .header("Idempotency-Key", format!("key-{number}"))
        .header("Content-Type", "application/json")
        .header("Prefer", "wait=60")
        .body(decision("0.1").to_string());
    let answer = request.send().await.unwrap();
    let answered_at = chrono::Utc::now();
    assert_eq!(answer.status(), 200);
    let run: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    let completed_at: chrono::DateTime<chrono::Utc> = run["completed_at"].as_str().unwrap().parse().unwrap();
    (answered_at - completed_at).to_std().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a thousand clients: make scale"]
async fn a_thousand_wait_for_next_to_nothing() {
    let app = TestApp::start().await;
    let tenant = app.tenant("1000").await;
    let mut server = Process::start(&app.place, &["serve"], &[]);
    let ops: Value = serde_json::from_str(&server.line("metrics and health are shown").await).unwrap();
    let ops = format!("http://{}/metrics", ops["address"].as_str().unwrap());
    let (url, client) = (server.api_url().await, Client::new());
    let clients = (0..CLIENTS).map(|number| wait(&client, &url, &tenant, number));
    let ended = futures::future::join_all(clients);
    let ((), latencies) = futures::future::join(
        async {
            until("all wait", async || {
                let metrics = client.get(&ops).send().await.unwrap().text().await.unwrap();
                metrics.contains(&format!("\ndpp_waits {CLIENTS}\n"))
            })
            .await;
            let (connections, before, begun) = (connections(&app).await, cpu(&server), Instant::now());
            tokio::time::sleep(WAITED).await;
            let (cpu, waited) = (cpu(&server) - before, begun.elapsed());
            let busy = app.place.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dpp' AND state <> 'idle'");
            print(&format!(
                "{CLIENTS} wait: {cpu:.2?} of CPU in {waited:.1?}; {connections} connections to the database, {} of them busy",
                busy.await[0][0].as_deref().unwrap()
            ));
            let mut done = 0;
            while done < CLIENTS {
                done += app.work().await;
            }
        },
        ended,
    )
    .await;
    let (half, most, max) = percentiles(latencies);
    print(&format!("from the end of a run to its answer: p50 {half:.1?}, p99 {most:.1?}, max {max:.1?}"));
    server.signal("TERM");
    assert_eq!(server.ended().await, Some(0));
    app.finish().await;
}

/// How long each of many requests took, some at a time.
async fn read(client: &Client, url: &str, key: &str) -> (u128, Vec<Duration>) {
    let begun = Instant::now();
    let all = stream::iter(0..READS)
        .map(|_| async {
            let begun = Instant::now();
            let answer = client.get(url).bearer_auth(key).send().await.unwrap();
            assert_eq!(answer.status(), 200);
            answer.bytes().await.unwrap();
            begun.elapsed()
        })
        .buffer_unordered(READERS)
        .collect()
        .await;
    (READS as u128 * 1_000 / begun.elapsed().as_millis(), all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "some load: make scale"]
async fn reading_a_run_is_measured_against_reading_nothing() {
    let app = TestApp::start().await;
    let tenant = app.tenant("10").await;
    let run_id = app.submit(&tenant, "one", "0.1").await;
    app.work().await;
    let waits = app.submit(&tenant, "two", "0.1").await;
    let mut server = Process::start(&app.place, &["serve"], &[]);
    let (url, client) = (server.api_url().await, Client::new());
    let mut limit = None;
    for (what, path) in [
        ("GET /llms.txt, which asks nobody", "/llms.txt".to_owned()),
        ("GET /v1/runs/{run_id}, waiting", format!("/v1/runs/{waits}")),
        ("GET /v1/runs/{run_id}, completed", format!("/v1/runs/{run_id}")),
    ] {
        let (rate, all) = read(&client, &format!("{url}{path}"), &tenant.key).await;
        let (half, most, max) = percentiles(all);
        let percent = most.as_micros() * 100 / limit.get_or_insert(most).as_micros();
        print(&format!(
            "{what}: {rate}/s, p50 {half:.2?}, p99 {most:.2?} ({percent} % of the first), max {max:.1?}"
        ));
    }
    server.signal("TERM");
    assert_eq!(server.ended().await, Some(0));
    app.finish().await;
}
