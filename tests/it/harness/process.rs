//! The built binary as a process, on a test's place.

use std::{fs, path::Path, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    sync::mpsc,
};

use super::{PATIENCE, services::Place};

/// A running `dpp`. Killed when dropped.
pub struct Process {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
}

impl Process {
    /// Starts `dpp` with these words, on a place, with more settings.
    pub fn start(place: &Place, words: &[&str], more: &[(&str, &str)]) -> Self {
        let mut child =
            command(place, words, more).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (send, lines) = mpsc::unbounded_channel();
        let stderr = child.stderr.take().unwrap();
        tokio::spawn(async move {
            let mut reader = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = reader.next_line().await {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines }
    }

    /// The same, with its log added to a file.
    pub fn logging(place: &Place, words: &[&str], more: &[(&str, &str)], log: &Path) -> Self {
        let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let child = command(place, words, more).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Self { child, lines: mpsc::unbounded_channel().1 }
    }

    /// How it has ended, if it has.
    pub fn ending(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for a log line that contains `text`.
    pub async fn line(&mut self, text: &str) -> String {
        let wait = async {
            let mut seen = Vec::new();
            while let Some(line) = self.lines.recv().await {
                if line.contains(text) {
                    return Ok(line);
                }
                seen.push(line);
            }
            Err(seen)
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(Ok(line)) => line,
            Ok(Err(seen)) => panic!("the process ended without {text:?}:\n{}", seen.join("\n")),
            Err(_) => panic!("no line with {text:?} in time"),
        }
    }

    /// The address in the line that says where the API listens.
    pub async fn api_url(&mut self) -> String {
        let line = self.line("the API listens").await;
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        format!("http://{}", line["address"].as_str().unwrap())
    }

    pub fn id(&self) -> u32 {
        self.child.id().expect("it has not been waited for")
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        let status = std::process::Command::new("kill").args(["-s", name, &self.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// Waits for its end; its exit code, or `None` after a signal.
    pub async fn ended(mut self) -> Option<i32> {
        tokio::time::timeout(Duration::from_secs(30), self.child.wait())
            .await
            .expect("it ends")
            .unwrap()
            .code()
    }
}

/// Runs `dpp` to its end: exit code, stdout, stderr.
pub async fn dpp(place: &Place, words: &[&str]) -> (i32, String, String) {
    let output = command(place, words, &[]).output().await.unwrap();
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// The same, with how long it took and the most memory that it had, in KiB.
pub async fn measured(place: &Place, words: &[&str]) -> ((i32, String, String), Duration, u64) {
    let started = std::time::Instant::now();
    let child = command(place, words, &[])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id().expect("it has not been waited for"));
    let mut peak_kib = 0;
    let mut output = std::pin::pin!(child.wait_with_output());
    let output = loop {
        let status = std::fs::read_to_string(&status).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next());
        peak_kib = peak.and_then(|kib| kib.parse().ok()).unwrap_or(peak_kib);
        if let Ok(output) = tokio::time::timeout(Duration::from_millis(10), &mut output).await {
            break output.unwrap();
        }
    };
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap_or(-1);
    ((code, text(output.stdout), text(output.stderr)), started.elapsed(), peak_kib)
}

fn command(place: &Place, words: &[&str], more: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dpp"));
    command.args(words).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.envs(&place.process_environment).envs(more.iter().copied());
    command.kill_on_drop(true);
    #[cfg(target_os = "linux")]
    die_with_this_process(&mut command);
    command
}

/// Also when nothing is dropped: when the test run itself is killed.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "a child process must be tied to its parent before it runs")]
fn die_with_this_process(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe and touches no memory of this process.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == -1 {
                Err(std::io::Error::last_os_error())
            } else {
                Ok(())
            }
        });
    }
}
