//! What goes wrong: processes killed and paused, servers crashed, S3 and SQS cut off. A supervisor starts
//! again what has ended, as it would anywhere.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::time::Instant;

use super::servers::{Memory, Servers, steady_port};
use crate::harness::{
    process::Process,
    services::Place,
    until,
    wire::{Fault, Which, Wire},
};

/// How often it looks.
const TICK: Duration = Duration::from_millis(20);
/// How long the supervisor lets pass before it starts a process again that ended by itself.
const RESTART_AFTER: Duration = Duration::from_millis(200);

/// One replica, running or not.
struct Replica {
    role: &'static str,
    name: String,
    port: u16,
    ops_port: u16,
    process: Option<Process>,
    start_at: Option<Instant>,
    resume_at: Option<Instant>,
    /// Its end was asked for.
    doomed: bool,
}

pub struct Gremlin {
    place: Place,
    directory: PathBuf,
    replicas: Vec<Replica>,
    pub servers: Servers,
    pub wire: Wire,
    rng: StdRng,
    postgres_at: Option<Instant>,
    redis_at: Option<(Instant, Memory)>,
    s3_at: Option<Instant>,
    sqs_at: Option<Instant>,
    pub deeds: BTreeMap<String, u64>,
}

impl Gremlin {
    pub fn new(place: Place, directory: &Path, servers: Servers, wire: Wire, seed: u64) -> Self {
        let mut replicas = Vec::new();
        for (role, count) in [("serve", 2), ("work", 3), ("reap", 2)] {
            replicas.extend((0..count).map(|number| Replica {
                role,
                name: format!("{role}{number}"),
                port: steady_port(),
                ops_port: steady_port(),
                process: None,
                start_at: None,
                resume_at: None,
                doomed: false,
            }));
        }
        let mut gremlin = Self {
            place,
            directory: directory.to_owned(),
            replicas,
            servers,
            wire,
            rng: StdRng::seed_from_u64(seed),
            postgres_at: None,
            redis_at: None,
            s3_at: None,
            sqs_at: None,
            deeds: BTreeMap::new(),
        };
        (0..gremlin.replicas.len()).for_each(|index| gremlin.start(index));
        gremlin
    }

    pub fn api_urls(&self) -> Vec<String> {
        let apis = self.replicas.iter().filter(|replica| replica.role == "serve");
        apis.map(|replica| format!("http://127.0.0.1:{}", replica.port)).collect()
    }

    fn start(&mut self, index: usize) {
        let replica = &mut self.replicas[index];
        let (port, ops) = (replica.port.to_string(), format!("127.0.0.1:{}", replica.ops_port));
        let more = [("DPP_PORT", port.as_str()), ("DPP_OPS_ADDR", ops.as_str())];
        let log = self.directory.join(format!("{}.log", replica.name));
        replica.process = Some(Process::logging(&self.place, &[replica.role], &more, &log));
        (replica.start_at, replica.resume_at, replica.doomed) = (None, None, false);
    }

    /// Makes things go wrong for this long.
    pub async fn rage(&mut self, time: Duration) {
        let end = Instant::now() + time;
        let mut ticks = tokio::time::interval(TICK);
        let (mut next, mut remember) = (Instant::now(), Instant::now());
        while Instant::now() < end {
            ticks.tick().await;
            self.repair(Instant::now()).await;
            if Instant::now() >= remember && self.servers.redis_runs() {
                self.servers.remember_redis();
                remember = Instant::now() + self.between(2_000, 6_000);
            }
            if Instant::now() >= next {
                self.deed().await;
                next = Instant::now() + self.between(50, 500);
            }
        }
    }

    /// Everything comes up again, and what was held back arrives.
    pub async fn calm(&mut self) {
        let past_all = Instant::now() + Duration::from_secs(3_600);
        self.repair(past_all).await;
        let late = self.wire.s3.release().await;
        self.count_many("late put arrived", late.len());
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build().unwrap();
        for index in 0..self.replicas.len() {
            until("every process is up, and everything that it needs", async || {
                // What was started while something was down has ended again.
                self.repair(past_all).await;
                let url = format!("http://127.0.0.1:{}/readyz", self.replicas[index].ops_port);
                http.get(url).send().await.is_ok_and(|answer| answer.status() == 200)
            })
            .await;
        }
    }

    /// Ends all processes as an operator would; each must end well.
    pub async fn retire(&mut self) {
        for replica in &mut self.replicas {
            let mut process = replica.process.take().expect("it runs");
            assert!(process.ending().is_none(), "{} ended by itself while nothing was broken", replica.name);
            process.signal("TERM");
            assert_eq!(process.ended().await, Some(0), "{}", replica.name);
        }
    }

    /// The logs of all processes.
    pub fn logs(&self) -> Vec<(String, String)> {
        let log = |replica: &Replica| {
            let path = self.directory.join(format!("{}.log", replica.name));
            (replica.name.clone(), std::fs::read_to_string(path).unwrap_or_default())
        };
        self.replicas.iter().map(log).collect()
    }

    /// Does what is due: restarts, resumes, reconnects.
    async fn repair(&mut self, now: Instant) {
        if self.postgres_at.is_some_and(|at| at <= now) {
            self.postgres_at = None;
            self.servers.start_postgres().await;
        }
        if let Some((_, memory)) = self.redis_at.filter(|(at, _)| *at <= now) {
            self.redis_at = None;
            self.servers.start_redis(memory).await;
        }
        for (at, proxy) in [(&mut self.s3_at, &self.wire.s3), (&mut self.sqs_at, &self.wire.sqs)] {
            if at.is_some_and(|at| at <= now) {
                *at = None;
                proxy.clear();
            }
        }
        for index in 0..self.replicas.len() {
            let replica = &mut self.replicas[index];
            if replica.resume_at.is_some_and(|at| at <= now) {
                replica.resume_at = None;
                if let Some(process) = &replica.process {
                    process.signal("CONT");
                }
            }
            let ending = replica.process.as_mut().and_then(Process::ending);
            if let Some(ending) = ending {
                replica.process = None;
                // It refuses to start on a database that is down, and says so with 1; a panic says 101.
                let sound =
                    if replica.doomed { ending.code() != Some(101) } else { ending.code() == Some(1) };
                assert!(sound, "{} ended with {ending}", replica.name);
                if !replica.doomed {
                    replica.start_at = Some(Instant::now() + RESTART_AFTER);
                    *self.deeds.entry("ended by itself: a dependency was down".to_owned()).or_default() += 1;
                }
            }
            if self.replicas[index].process.is_none()
                && self.replicas[index].start_at.is_none_or(|at| at <= now)
            {
                self.start(index);
            }
        }
    }

    async fn deed(&mut self) {
        match self.rng.random_range(0..100) {
            0..34 => self.kill(),
            34..58 => self.pause(),
            58..63 => self.terminate(),
            63..69 if self.servers.postgres_runs() => {
                self.count("PostgreSQL restarted (immediate)");
                self.servers.crash_postgres().await;
                self.postgres_at = Some(Instant::now() + self.between(0, 1_500));
            }
            69..78 if self.servers.redis_runs() => {
                let memory = [Memory::Kept, Memory::Old, Memory::Lost][self.rng.random_range(0..3)];
                self.count(&format!("Redis killed, memory {memory:?}"));
                self.servers.kill_redis().await;
                self.redis_at = Some((Instant::now() + self.between(0, 1_500), memory));
            }
            78..82 if self.s3_at.is_none() => {
                self.count("S3 unreachable");
                self.wire.s3.cut();
                self.s3_at = Some(Instant::now() + self.between(500, 5_000));
            }
            82..86 if self.sqs_at.is_none() => {
                self.count("SQS unreachable");
                self.wire.sqs.cut();
                self.sqs_at = Some(Instant::now() + self.between(500, 5_000));
            }
            86..93 => {
                let faults = [
                    (Fault::LoseAnswer, Which::operation("PutObject")),
                    (Fault::Late, Which::operation("PutObject")),
                    (Fault::Truncate, Which::operation("PutObject")),
                    (Fault::Status(503, "SlowDown"), Which::any()),
                    (Fault::Stale, Which::operation("HeadObject")),
                ];
                let (fault, which) = faults[self.rng.random_range(0..faults.len())].clone();
                let times = self.rng.random_range(1..6);
                self.count(&format!("S3 {fault:?}"));
                self.wire.s3.set(fault, which, times);
            }
            93..100 => {
                let faults = [Fault::LoseAnswer, Fault::Refuse, Fault::Status(503, "ServiceUnavailable")];
                let (fault, times) =
                    (faults[self.rng.random_range(0..faults.len())], self.rng.random_range(1..6));
                self.count(&format!("SQS {fault:?}"));
                self.wire.sqs.set(fault, Which::any(), times);
            }
            _ => {}
        }
    }

    /// A replica that runs, drawn by lot.
    fn victim(&mut self) -> Option<usize> {
        let mut running = Vec::new();
        for (index, replica) in self.replicas.iter_mut().enumerate() {
            // One that has ended by itself is the supervisor's.
            if !replica.doomed && replica.process.as_mut().is_some_and(|process| process.ending().is_none()) {
                running.push(index);
            }
        }
        (!running.is_empty()).then(|| running[self.rng.random_range(0..running.len())])
    }

    fn kill(&mut self) {
        let Some(index) = self.victim() else { return };
        let after = self.between(0, 2_000);
        let paused = self.replicas[index].resume_at.is_some();
        let role = self.replicas[index].role;
        self.count(&format!("SIGKILL {role}{}", if paused { ", paused" } else { "" }));
        self.end(index, "KILL", after);
    }

    fn terminate(&mut self) {
        let Some(index) = self.victim().filter(|index| self.replicas[*index].resume_at.is_none()) else {
            return;
        };
        let role = self.replicas[index].role;
        self.count(&format!("SIGTERM {role}"));
        self.end(index, "TERM", Duration::ZERO);
    }

    fn end(&mut self, index: usize, signal: &str, after: Duration) {
        let replica = &mut self.replicas[index];
        replica.process.as_ref().expect("it runs").signal(signal);
        (replica.doomed, replica.resume_at) = (true, None);
        replica.start_at = Some(Instant::now() + after);
    }

    fn pause(&mut self) {
        let Some(index) = self.victim().filter(|index| self.replicas[*index].resume_at.is_none()) else {
            return;
        };
        // Some for longer than a lease, a claim's threshold and a reservation's grace.
        let most = if self.rng.random_bool(0.6) { 1_500 } else { 8_000 };
        let time = self.between(100, most);
        let replica = &mut self.replicas[index];
        replica.process.as_ref().expect("it runs").signal("STOP");
        replica.resume_at = Some(Instant::now() + time);
        let (role, long) = (replica.role, time >= Duration::from_secs(3));
        self.count(&format!("SIGSTOP {role}{}", if long { ", beyond the lease" } else { "" }));
    }

    fn between(&mut self, least_ms: u64, most_ms: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(least_ms..=most_ms))
    }

    fn count(&mut self, deed: &str) {
        self.count_many(deed, 1);
    }

    fn count_many(&mut self, deed: &str, times: usize) {
        *self.deeds.entry(deed.to_owned()).or_default() += u64::try_from(times).unwrap();
    }
}
