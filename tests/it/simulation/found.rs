//! Sequences that broke a promise, each with a sentence on how: in the product, or in a product without the
//! one line that the sentence names. Each is run by itself.

use dpp::flow::crash::{CrashPoint, Fault as CrashFault};

use super::{
    run,
    step::{CLAIMS, Job, LEASES, Outage, Step, Submit},
};
use crate::harness::wire::Fault as WireFault;

/// As a failing sequence prints it.
const fn submit(tenant: usize, key: u8, job: Job, cap: usize) -> Submit {
    Submit { tenant, key, job, cap }
}

#[test]
fn a_hold_of_an_ended_epoch_is_not_inserted() {
    // The same money was sold twice without the epoch in `submit_run.sql`: the tenant has $1.50.
    run(&[Step::During {
        step: Box::new(Step::Submit(submit(1, 0, Job::Decision, 2))),
        at: CrashPoint::SubmitInsert,
        meanwhile: vec![Step::FlushRedis, Step::Submit(submit(1, 1, Job::Decision, 2))],
    }]);
}

#[test]
fn an_old_snapshot_of_redis_admits_nothing() {
    // The same, without the server's identity in `reserve-6.lua`: the epoch is still the current one.
    run(&[
        Step::SaveRedis,
        Step::Submit(submit(1, 0, Job::Decision, 2)),
        Step::RestoreRedis { tenant: None },
        Step::Submit(submit(1, 1, Job::Decision, 2)),
    ]);
}

#[test]
fn a_look_that_failed_rolls_nothing_back() {
    // A delivered result was thrown away where a refused HEAD counted as an absent object.
    run(&[
        Step::Submit(submit(0, 0, Job::Charges, 2)),
        Step::With(vec![Outage::At(CrashPoint::FinishEnd, CrashFault::DiesBefore)], Box::new(Step::Work)),
        Step::Wait { secs: 4 },
        Step::With(
            vec![Outage::S3("HeadObject", WireFault::Status(403, "AccessDenied"), 3)],
            Box::new(Step::Reap { pass: CLAIMS }),
        ),
        Step::Reap { pass: CLAIMS },
    ]);
}

#[test]
fn a_worker_without_its_lease_ends_nothing() {
    // A run was charged by a worker that had lost it, without the lease and the version in `end_run.sql`.
    run(&[
        Step::Submit(submit(0, 0, Job::Decision, 2)),
        Step::Pause,
        Step::Wait { secs: 4 },
        Step::Reap { pass: LEASES },
        Step::ZombieFails { used_micros: 700_000 },
    ]);
}

#[test]
fn a_deposit_ends_the_gates_epoch() {
    // A covered submit was refused without the raised epoch in `flow/deposit.rs`: the gate's old budget went
    // on to count.
    run(&[
        Step::Submit(submit(1, 0, Job::Waits, 2)),
        Step::With(
            vec![Outage::At(CrashPoint::DepositCommit, CrashFault::DiesAfter)],
            Box::new(Step::Deposit { tenant: 1, reference: 0, dollars: 3 }),
        ),
        Step::Submit(submit(1, 1, Job::Decision, 3)),
    ]);
}
