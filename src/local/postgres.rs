//! A private PostgreSQL: the machine's own binaries, a data directory and port of ours.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use tokio::time::Instant;

use super::child::{Child, Signal, find, free_port, is_root};

/// How long it may take to accept logins: recovery after a crash included.
const START_MAX: Duration = Duration::from_secs(60);
/// How often a port that was free a moment ago may be taken.
const PORTS_TRIED_MAX: usize = 3;
const USER: &str = "dpp";

/// A running server.
pub struct Postgres {
    /// Its process.
    pub child: Child,
    port: u16,
}

/// What the data is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It survives a crash.
    Durable,
    /// A crash may lose it: for tests.
    Scratch,
}

/// How to run a program as somebody that PostgreSQL accepts: it refuses root.
enum As {
    Me,
    /// In a user namespace in which root has another number; files stay root's.
    Namespace,
    /// As the system's user `postgres`, with the data where that user can reach it.
    PostgresUser,
}

impl Postgres {
    /// Starts a server on `directory`, which is made if it is not there. `binaries` overrides where
    /// its programs are; `port` asks for one instead of any free one.
    ///
    /// # Errors
    /// When the programs are missing, or the server does not come up.
    pub async fn start(
        directory: &Path,
        binaries: Option<&Path>,
        durability: Durability,
        port: Option<u16>,
    ) -> anyhow::Result<Self> {
        let usual = usual_places();
        let program = |name: &str| {
            find(name, binaries, &usual).with_context(|| {
                format!("PostgreSQL's `{name}` is not on this machine: install PostgreSQL (Debian: apt-get install postgresql; macOS: brew install postgresql@17), or set DPP_PG_BIN to the directory of its programs")
            })
        };
        let (initdb, postgres) = (program("initdb")?, program("postgres")?);
        let run_as = if is_root() { run_as_root() } else { As::Me };
        let data = match run_as {
            As::PostgresUser => borrowed_directory(directory)?,
            _ => directory.to_owned(),
        };
        if !data.join("PG_VERSION").is_file() {
            initialise(&initdb, &run_as, &data)?;
        }
        for _ in 0..PORTS_TRIED_MAX {
            let port = port.map_or_else(free_port, Ok)?;
            let child = Child::start(
                "postgres",
                server(&postgres, &run_as, &data, port, durability)?,
                Signal::Interrupt,
            )
            .context("cannot start postgres")?;
            if accepts_logins(&child, port).await? {
                return Ok(Self { child, port });
            }
        }
        let log = fs::read_to_string(log_path(&data)).unwrap_or_default();
        let tail: Vec<_> = log.lines().rev().take(8).collect();
        bail!("PostgreSQL does not start: {}", tail.into_iter().rev().collect::<Vec<_>>().join(" | "))
    }

    /// The URL of a database of this server.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// Stops it at once, as `pg_ctl stop --mode=immediate` does: whatever was not committed is lost, and
    /// the next start recovers from the log. For tests.
    pub async fn crash(self) {
        self.child.quit().await;
    }

    /// Runs one statement in the database `postgres`.
    ///
    /// # Errors
    /// When it fails.
    pub async fn execute(&self, sql: &str) -> anyhow::Result<()> {
        let (client, connection) =
            tokio_postgres::connect(&self.url("postgres"), tokio_postgres::NoTls).await?;
        tokio::select! {
            done = client.batch_execute(sql) => Ok(done?),
            closed = connection => { closed?; bail!("the connection was closed") }
        }
    }

    /// Makes a database unless it is there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn ensure_database(&self, name: &str) -> anyhow::Result<()> {
        match self.execute(&format!("CREATE DATABASE {name}")).await {
            Err(error) => {
                match error.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::code) {
                    Some(&tokio_postgres::error::SqlState::DUPLICATE_DATABASE) => Ok(()),
                    _ => Err(error),
                }
            }
            Ok(()) => Ok(()),
        }
    }
}

fn usual_places() -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = ["/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt"]
        .iter()
        .filter_map(|parent| fs::read_dir(parent).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("postgres").is_file())
        .collect();
    let version = |bin: &PathBuf| {
        let name = bin.parent().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default();
        name.trim_start_matches("postgresql@").parse::<u32>().unwrap_or(0)
    };
    places.sort_by_key(|bin| std::cmp::Reverse(version(bin)));
    places
}

fn run_as_root() -> As {
    let allowed = Command::new("unshare")
        .args(["--user", "--map-user=1000", "--map-group=1000", "--", "true"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if allowed { As::Namespace } else { As::PostgresUser }
}

/// Where the user `postgres` keeps the data of `directory`, which that user cannot reach below a
/// root's home.
fn borrowed_directory(directory: &Path) -> anyhow::Result<PathBuf> {
    use sha2::Digest as _;
    let name = std::path::absolute(directory)?;
    let digest = sha2::Sha256::digest(name.as_os_str().as_encoded_bytes());
    let place =
        PathBuf::from("/var/tmp").join(format!("dpp-postgres-{}", crate::domain::api_key::hex(&digest[..8])));
    fs::create_dir_all(&place)?;
    let status = Command::new("chown").args(["-R", "postgres:postgres"]).arg(&place).status()?;
    ensure!(
        status.success(),
        "PostgreSQL refuses to run as root, user namespaces are not allowed here, and there is no user `postgres`: run this as another user"
    );
    Ok(place.join("data"))
}

fn command(program: &Path, run_as: &As) -> Command {
    let mut command = match run_as {
        As::Me => return Command::new(program),
        As::Namespace => {
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-user=1000", "--map-group=1000", "--"]);
            command
        }
        As::PostgresUser => {
            let mut command = Command::new("setpriv");
            // A change of user clears the tie to the parent; it is tied anew.
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig=INT", "--"]);
            command.current_dir("/");
            command
        }
    };
    command.arg(program);
    command
}

/// Makes a cluster aside and moves it into place, so that a crash leaves none or a whole one.
fn initialise(initdb: &Path, run_as: &As, data: &Path) -> anyhow::Result<()> {
    let aside = data.with_extension("new");
    if aside.exists() {
        fs::remove_dir_all(&aside)?;
    }
    let output = command(initdb, run_as)
        .args(["-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
        .arg(&aside)
        .output()
        .context("cannot run initdb")?;
    ensure!(output.status.success(), "initdb failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    fs::rename(&aside, data)?;
    Ok(())
}

fn log_path(data: &Path) -> PathBuf {
    data.with_extension("log")
}

fn server(
    postgres: &Path,
    run_as: &As,
    data: &Path,
    port: u16,
    durability: Durability,
) -> anyhow::Result<Command> {
    let log = fs::File::create(log_path(data))?;
    let mut command = command(postgres, run_as);
    command.arg("-D").arg(data).args(["-p", &port.to_string()]);
    let mut settings = vec![
        "listen_addresses=127.0.0.1",
        "unix_socket_directories=",
        "max_connections=300",
        "shared_buffers=128MB",
        "max_wal_size=1GB",
    ];
    if durability == Durability::Scratch {
        settings.extend(["fsync=off", "synchronous_commit=off", "full_page_writes=off", "autovacuum=off"]);
    }
    for setting in settings {
        command.args(["-c", setting]);
    }
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(command)
}

/// Waits until a login succeeds: the port opens before logins are accepted. `false` when the server
/// has ended instead.
async fn accepts_logins(child: &Child, port: u16) -> anyhow::Result<bool> {
    let url = format!("postgres://{USER}@127.0.0.1:{port}/postgres?sslmode=disable");
    let patience = Instant::now() + START_MAX;
    while child.ended().is_none() {
        if let Ok((client, connection)) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await {
            let alive = tokio::select! {
                answer = client.simple_query("SELECT 1") => answer.is_ok(),
                _ = connection => false,
            };
            if alive {
                return Ok(true);
            }
        }
        ensure!(
            Instant::now() < patience,
            "PostgreSQL does not accept logins within {} s",
            START_MAX.as_secs()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(false)
}
