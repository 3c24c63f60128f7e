//! `dpp dev`: from nothing to a paid run, over a restart, and nothing left behind.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::harness::{decision, until};

struct Dev {
    child: Child,
    stdout: std::sync::mpsc::Receiver<String>,
}

impl Dev {
    fn start(directory: &Path, words: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_dpp"))
            .args(["dev", "--data-dir"])
            .arg(directory)
            .args(words)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("DPP_OPS_ADDR", "127.0.0.1:0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (send, stdout) = std::sync::mpsc::channel();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        std::thread::spawn(move || lines.map_while(Result::ok).all(|line| send.send(line).is_ok()));
        Self { child, stdout }
    }

    /// Reads lines until one contains `text`; returns all of them.
    fn lines_until(&self, text: &str) -> Vec<String> {
        let mut lines = Vec::new();
        while lines.last().is_none_or(|line: &String| !line.contains(text)) {
            let line = self.stdout.recv_timeout(Duration::from_secs(30));
            lines.push(line.unwrap_or_else(|_| panic!("no {text:?} after {lines:?}")));
        }
        lines
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }
}

/// Processes whose command line names this directory.
fn left(directory: &Path) -> Vec<String> {
    let name = directory.to_str().unwrap();
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok())
        .filter(|command| command.contains(name))
        .collect()
}

async fn nothing_is_left(directory: &Path) {
    until("no process is left", async || left(directory).is_empty()).await;
}

fn free_port() -> String {
    dpp::local::child::free_port().unwrap().to_string()
}

async fn paid_run(lines: &[String]) -> Value {
    let text = lines.join("\n");
    let after = |mark: &str| text.split_once(mark).unwrap().1.split_whitespace().next().unwrap().to_owned();
    let (url, key) = (after("ready at "), after("API key: "));
    let client = reqwest::Client::new();
    let response = client
        .post(format!("{url}/v1/runs"))
        .bearer_auth(&key)
        .header("Idempotency-Key", uuid::Uuid::new_v4().to_string())
        .header("Content-Type", "application/json")
        .body(decision("1").to_string())
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 202);
    let run: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    let path = format!("{url}/v1/runs/{}", run["run_id"].as_str().unwrap());
    let mut done = Value::Null;
    until("the run is done", async || {
        let text = client.get(&path).bearer_auth(&key).send().await.unwrap().text().await.unwrap();
        done = serde_json::from_str(&text).unwrap();
        done["status"] == "COMPLETED"
    })
    .await;
    let budget = client.get(format!("{url}/v1/budget")).bearer_auth(&key).send().await.unwrap();
    serde_json::from_str(&budget.text().await.unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dev_starts_from_nothing_keeps_its_state_and_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().join("state");
    let mut first = Dev::start(&directory, &["--port", &free_port()]);
    let lines = first.lines_until("Ctrl-C");
    assert_eq!(paid_run(&lines).await["available_usd"], "99.9880");

    // A second one on the same state says so and stops.
    let output = Command::new(env!("CARGO_BIN_EXE_dpp"))
        .args(["dev", "--data-dir"])
        .arg(&directory)
        .env_clear()
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("another `dpp dev` is running"), "{output:?}");

    first.signal("TERM");
    assert_eq!(first.child.wait().unwrap().code(), Some(0));
    nothing_is_left(&directory).await;

    let mut second = Dev::start(&directory, &["--port", &free_port()]);
    let again = second.lines_until("Ctrl-C");
    let key = |lines: &[String]| lines.iter().find(|line| line.contains("API key")).cloned();
    assert_eq!(key(&again), key(&lines), "the key survives");
    assert_eq!(paid_run(&again).await["available_usd"], "99.9760");

    second.signal("KILL");
    second.child.wait().unwrap();
    nothing_is_left(&directory).await;

    let mut third = Dev::start(&directory, &["--services-only"]);
    let settings = third.lines_until("ready");
    for name in [
        "DATABASE_URL=",
        "REDIS_URL=",
        "SQS_QUEUE_URL=",
        "S3_RESULT_BUCKET=",
        "URL_ALLOW_LOOPBACK=true",
        "DPP_ENV=dev",
    ] {
        assert!(settings.iter().any(|line| line.starts_with(name)), "{name} in {settings:?}");
    }
    assert_eq!(settings.last().map(String::as_str), Some("ready"));
    third.signal("INT");
    assert_eq!(third.child.wait().unwrap().code(), Some(0));
    nothing_is_left(&directory).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_service_of_dev_dies_everything_stops() {
    let directory = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(directory.path(), &["--services-only"]);
    dev.lines_until("ready");
    // Redis rewrites its title, so it is found by its working directory.
    let pids: Vec<_> = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| {
            std::fs::read_link(entry.path().join("cwd"))
                .is_ok_and(|cwd| cwd == directory.path().join("redis"))
                && std::fs::read_to_string(entry.path().join("comm"))
                    .is_ok_and(|comm| comm.starts_with("redis"))
        })
        .filter_map(|entry| entry.file_name().to_str().map(str::to_owned))
        .collect();
    assert_eq!(pids.len(), 1, "one Redis of ours");
    assert!(Command::new("kill").args(["-s", "KILL", &pids[0]]).status().unwrap().success());

    assert_eq!(dev.child.wait().unwrap().code(), Some(1));
    nothing_is_left(directory.path()).await;
}

/// An index that is built CONCURRENTLY waits for every statement under way, so no process may wait for the
/// migrations' lock inside one.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn processes_that_migrate_at_once_wait_for_each_other() {
    let place = crate::harness::services::shared().place().await;
    let name = place.database_url.rsplit('/').next().unwrap();
    let (name, rest) = name.split_once('?').unwrap_or((name, ""));
    place.sql(&format!("CREATE DATABASE {name}_race TEMPLATE template0")).await;
    let url = place.database_url.replace(&format!("/{name}"), &format!("/{name}_race"));
    assert!(url.contains("_race") && url.ends_with(rest));
    let races = (0..4).map(|_| {
        let url = url.clone();
        tokio::spawn(async move { dpp::store::migrate(&url.into()).await })
    });
    let mut applied = Vec::new();
    for race in futures::future::join_all(races).await {
        applied.extend(race.unwrap().unwrap());
    }
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations")).unwrap();
    let files = files.filter(|entry| entry.as_ref().unwrap().path().is_dir()).count();
    assert_eq!(applied.len(), files, "each once: {applied:?}");
    let state = dpp::store::schema_state(&url.into()).await.unwrap();
    assert_eq!(state, dpp::store::SchemaState::Current);
}

/// An index whose building was cut short is there, good for nothing, and in the way of the next `dpp migrate`;
/// one that was finished and not written down is in its way too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_whose_building_was_interrupted_is_built_anew() {
    const INDEX: &str = "runs_tenant_id_created_at_run_id_idx";
    let app = crate::harness::TestApp::start().await;
    let tenant = app.tenant("2").await;
    for key in ["one", "two"] {
        app.submit(&tenant, key, "1").await;
    }
    let forget = "DELETE FROM __diesel_schema_migrations WHERE version = '20261121000103'";
    let state = async || {
        let sql = format!("SELECT indisvalid FROM pg_index WHERE indexrelid = '{INDEX}'::regclass");
        app.place.sql(&sql).await[0][0].clone().unwrap()
    };
    app.place.sql(&format!("{forget}; DROP INDEX {INDEX}")).await;
    // One index is cut short under its name, and another by somebody else's hands, who may want it.
    let url = app.place.database_url.clone();
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    let driver = tokio::spawn(connection);
    for name in [INDEX, "somebody_elses_idx"] {
        let build = format!("CREATE UNIQUE INDEX CONCURRENTLY {name} ON runs ((1))");
        assert!(client.simple_query(&build).await.is_err(), "two runs are alike in that");
    }
    drop(client);
    driver.await.unwrap().unwrap();
    assert_eq!(state().await, "f");

    let (code, out, err) = crate::harness::process::dpp(&app.place, &["migrate"]).await;
    assert_eq!((code, out.contains("20261121000103"), err.contains(INDEX)), (0, true, true), "{out} {err}");
    assert_eq!(state().await, "t");
    let left = "SELECT 1 FROM pg_class WHERE relname = 'somebody_elses_idx'";
    assert_eq!(app.place.sql(left).await.len(), 1, "it is no business of ours");
    app.place.sql("DROP INDEX somebody_elses_idx").await;

    app.place.sql(forget).await;
    let (code, out, err) = crate::harness::process::dpp(&app.place, &["migrate"]).await;
    assert_eq!((code, out.contains("20261121000103")), (0, true), "{out} {err}");
    assert_eq!(crate::harness::process::dpp(&app.place, &["migrate", "--check"]).await.0, 0);
    app.finish().await;
}
