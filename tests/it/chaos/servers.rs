//! PostgreSQL and Redis of the test's own, which crash and come back on the same port.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use deadpool_redis::redis;
use dpp::local::{
    child::{Child, Signal, find},
    postgres::{Durability, Postgres},
};
use rand::RngExt as _;

use crate::harness::until;

/// What Redis knows after it was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// All that it was told.
    Kept,
    /// What it had been told some time ago.
    Old,
    /// Nothing.
    Lost,
}

pub struct Servers {
    directory: PathBuf,
    postgres: Option<Postgres>,
    postgres_port: u16,
    redis: Option<Child>,
    redis_port: u16,
}

/// A port that is free and stays ours while nothing listens on it: below those that the kernel gives to
/// outgoing connections.
pub fn steady_port() -> u16 {
    let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let mut ports = std::iter::repeat_with(|| rand::rng().random_range(20_000..32_000));
    ports.find(free).expect("a port is free")
}

impl Servers {
    pub async fn start(directory: &Path) -> Self {
        let mut servers = Self {
            directory: directory.to_owned(),
            postgres: None,
            postgres_port: steady_port(),
            redis: None,
            redis_port: steady_port(),
        };
        servers.start_postgres().await;
        servers.start_redis(Memory::Kept).await;
        servers
    }

    pub fn database_url(&self, database: &str) -> String {
        self.postgres.as_ref().expect("it runs").url(database)
    }

    pub fn redis_url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.redis_port)
    }

    pub async fn make_database(&self, name: &str) {
        self.postgres.as_ref().expect("it runs").ensure_database(name).await.unwrap();
    }

    pub fn postgres_runs(&self) -> bool {
        self.postgres.is_some()
    }

    pub fn redis_runs(&self) -> bool {
        self.redis.is_some()
    }

    pub async fn crash_postgres(&mut self) {
        self.postgres.take().expect("it runs").crash().await;
    }

    pub async fn start_postgres(&mut self) {
        let directory = self.directory.join("postgres");
        let start = Postgres::start(&directory, None, Durability::Durable, Some(self.postgres_port));
        self.postgres = Some(start.await.unwrap());
    }

    pub async fn kill_redis(&mut self) {
        self.redis.take().expect("it runs").kill().await;
    }

    /// Keeps what Redis knows now, for [`Memory::Old`].
    pub fn remember_redis(&self) {
        let old = self.directory.join("redis-old");
        let _ = fs::remove_dir_all(&old);
        copy(&self.redis_data(), &old);
    }

    pub async fn start_redis(&mut self, memory: Memory) {
        let data = self.redis_data();
        fs::create_dir_all(&data).unwrap();
        if memory != Memory::Kept {
            fs::remove_dir_all(&data).unwrap();
            fs::create_dir_all(&data).unwrap();
        }
        if memory == Memory::Old {
            copy(&self.directory.join("redis-old"), &data);
        }
        let mut command = Command::new(find("redis-server", None, &[]).expect("Redis is installed"));
        command.args(["--port", &self.redis_port.to_string(), "--bind", "127.0.0.1", "--daemonize", "no"]);
        // Written before it answers, so a kill loses nothing.
        command.args(["--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]);
        command.args(["--auto-aof-rewrite-percentage", "0", "--dir"]).arg(&data);
        let log = fs::File::create(self.directory.join("redis.log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = Child::start("redis", command, Signal::Terminate).unwrap();
        let client = redis::Client::open(self.redis_url()).unwrap();
        until("Redis answers", async || {
            assert_eq!(child.ended(), None, "see {}", self.directory.join("redis.log").display());
            let Ok(mut connection) = client.get_multiplexed_async_connection().await else { return false };
            redis::cmd("PING").query_async::<String>(&mut connection).await.is_ok()
        })
        .await;
        self.redis = Some(child);
    }

    fn redis_data(&self) -> PathBuf {
        self.directory.join("redis")
    }
}

/// Copies a directory, as far as it is there.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
