//! A private Redis. It keeps nothing on disk: a gate that forgets is rebuilt from the ledger.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use super::child::{Child, Signal, find, free_port};

const START_MAX: Duration = Duration::from_secs(20);
const PORTS_TRIED_MAX: usize = 3;

/// A running server.
pub struct Redis {
    /// Its process.
    pub child: Child,
    port: u16,
}

impl Redis {
    /// Starts a server with its working files in `directory`. `binaries` overrides where its program
    /// is; `port` asks for one instead of any free one.
    ///
    /// # Errors
    /// When the program is missing, or the server does not come up.
    pub async fn start(directory: &Path, binaries: Option<&Path>, port: Option<u16>) -> anyhow::Result<Self> {
        let usual = [Path::new("/opt/homebrew/bin").to_owned(), Path::new("/usr/local/bin").to_owned()];
        let program = ["redis-server", "valkey-server"].iter().find_map(|name| find(name, binaries, &usual)).context(
            "Redis is not on this machine: install it (Debian: apt-get install redis-server; macOS: brew install redis), or set DPP_REDIS_BIN to the directory of redis-server",
        )?;
        fs::create_dir_all(directory)?;
        for _ in 0..PORTS_TRIED_MAX {
            let port = port.map_or_else(free_port, Ok)?;
            let log = fs::File::create(directory.join("redis.log"))?;
            let mut command = Command::new(&program);
            command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--daemonize", "no"]);
            // The last line lets every test have a key space of its own.
            command.args(["--save", "", "--appendonly", "no", "--databases", "4096", "--dir"]).arg(directory);
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            let child =
                Child::start("redis", command, Signal::Terminate).context("cannot start redis-server")?;
            if answers(&child, port).await? {
                return Ok(Self { child, port });
            }
        }
        bail!("Redis does not start; see {}", directory.join("redis.log").display())
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of one of its key spaces.
    pub fn url(&self, key_space: u32) -> String {
        format!("redis://127.0.0.1:{}/{key_space}", self.port)
    }
}

async fn answers(child: &Child, port: u16) -> anyhow::Result<bool> {
    let patience = Instant::now() + START_MAX;
    while child.ended().is_none() {
        if ping(port).await.is_ok_and(|pong| pong) {
            return Ok(true);
        }
        ensure!(Instant::now() < patience, "Redis does not answer within {} s", START_MAX.as_secs());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(false)
}

async fn ping(port: u16) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"PING\r\n").await?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).await?;
    Ok(&answer == b"+PONG\r\n")
}
