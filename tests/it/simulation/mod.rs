//! The simulation: random sequences of what can happen, over real services with faults at every effect and
//! at the wire, against a simple single-threaded model that replays what was asked, answered and seen.
//!
//! After every step no tenant has overspent, the ledger is what the runs say, what has ended has not changed,
//! a refusal for lack of budget is exact, one key is one run. After the last one everything comes to rest,
//! the promises P1–P7 hold (`harness::check`), and every client that tries again has its one run.
//!
//! A seed names a sequence, and `SIM_SEED=7 SIM_STEPS=10000` (`make sim SEED=7 STEPS=10000`) runs those of
//! 7, 8, 9 … until they have had so many steps. Without them the run is always the same, so that what CI
//! says of a change is about the change. A sequence that fails shrinks to a short one, which is kept in
//! [`found`].

mod found;
mod model;
mod step;
mod world;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    panic::{AssertUnwindSafe, resume_unwind},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use futures::FutureExt as _;
use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use self::{
    step::{Step, steps},
    world::{Done, World},
};
use crate::harness::say;

/// Steps of a run that nobody asked more of.
const STEPS: usize = 2_000;
/// Sequences that live at once. Most of a sequence is waiting.
const AT_ONCE: usize = 6;

/// Runs one sequence to its end.
async fn live(steps: &[Step]) -> Done {
    let started = Instant::now();
    let world = World::new().await;
    world.done.borrow_mut().took("(begin)".to_owned(), started.elapsed());
    let lent = world.lent();
    let life = async {
        for step in steps {
            let started = Instant::now();
            world.step(step).await;
            world.done.borrow_mut().took(step.kind(), started.elapsed());
        }
        let started = Instant::now();
        world.end().await;
        world.done.borrow_mut().took("(end)".to_owned(), started.elapsed());
        let mut done = world.done.borrow().clone();
        let started = Instant::now();
        world.finish().await;
        done.took("(check)".to_owned(), started.elapsed());
        done
    };
    match AssertUnwindSafe(Box::pin(life)).catch_unwind().await {
        Ok(done) => done,
        Err(broken) => {
            // Shrinking breaks hundreds.
            lent.release().await;
            resume_unwind(broken)
        }
    }
}

/// The same, in a runtime of its own, as each process has.
pub fn run(steps: &[Step]) -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(Box::pin(live(steps)))
}

fn runner(seed: u64) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { max_shrink_iters: 300, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// What was done.
#[derive(Default)]
struct Report {
    sequences: usize,
    steps: usize,
    /// How many, and how many milliseconds they took.
    kinds: BTreeMap<String, (u32, u128)>,
    done: Done,
    failed: Vec<String>,
}

impl Report {
    fn add(&mut self, steps: &[Step], done: &Done) {
        self.sequences += 1;
        self.steps += steps.len();
        for (kind, (count, millis)) in &done.kinds {
            let kind = self.kinds.entry(kind.clone()).or_default();
            *kind = (kind.0 + count, kind.1 + millis);
        }
        for (all, new) in [(&mut self.done.made, &done.made), (&mut self.done.struck, &done.struck)] {
            for (fault, count) in new {
                *all.entry(fault.clone()).or_default() += count;
            }
        }
    }

    fn text(&self, seed: u64, took: std::time::Duration) -> String {
        let (made, struck) =
            (self.done.made.values().sum::<usize>(), self.done.struck.values().sum::<usize>());
        let different = self.done.struck.values().filter(|count| **count > 0).count();
        let per_minute =
            |count: usize| count * 60_000 / usize::try_from(took.as_millis()).unwrap_or(1).max(1);
        let mut text = format!(
            "simulation from seed {seed}: {} sequences, {} steps in {} s ({} sequences and {} steps a minute); \
             {struck} of {made} faults struck, {different} different ones\n",
            self.sequences,
            self.steps,
            took.as_secs(),
            per_minute(self.sequences),
            per_minute(self.steps),
        );
        for (kind, (count, millis)) in &self.kinds {
            writeln!(text, "{count:>7} {kind} ({} ms each)", millis / u128::from(*count)).unwrap();
        }
        text.push_str("faults, struck of made:\n");
        for (fault, made) in &self.done.made {
            writeln!(text, "{:>7} of {made} {fault}", self.done.struck.get(fault).copied().unwrap_or(0))
                .unwrap();
        }
        text
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().filter(|text| !text.is_empty()).map(|text| text.parse().unwrap())
}

#[test]
fn whatever_happens_the_promises_hold() {
    let seed = setting("SIM_SEED").unwrap_or(0);
    let steps_max = setting("SIM_STEPS").and_then(|steps| usize::try_from(steps).ok()).unwrap_or(STEPS);
    let (drawn, report) = (Mutex::new((seed, 0)), Mutex::new(Report::default()));
    let stop = AtomicBool::new(false);
    let worker = || {
        while !stop.load(Ordering::Relaxed) {
            let (seed, tree, mut runner) = {
                let mut drawn = drawn.lock().unwrap();
                if drawn.1 >= steps_max {
                    break;
                }
                let mut runner = runner(drawn.0);
                let tree = steps().new_tree(&mut runner).unwrap();
                drawn.0 += 1;
                drawn.1 += tree.current().len();
                (drawn.0 - 1, tree, runner)
            };
            let outcome = runner.run_one(tree, |steps| {
                let done = run(&steps);
                report.lock().unwrap().add(&steps, &done);
                Ok(())
            });
            if let Err(failed) = outcome {
                stop.store(true, Ordering::Relaxed);
                report.lock().unwrap().failed.push(format!("SIM_SEED={seed} SIM_STEPS=1: {failed}"));
            }
        }
    };
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            // Unoptimized futures are large.
            std::thread::Builder::new().stack_size(32 << 20).spawn_scoped(scope, worker).unwrap();
        }
    });
    let report = report.into_inner().unwrap();
    say(&report.text(seed, started.elapsed()));
    assert!(report.failed.is_empty(), "{}", report.failed.join("\n"));
}
