//! What can happen, and how likely it is drawn.

use std::fmt;

use dpp::{
    flow::crash::{CrashPoint, Fault as CrashFault},
    reaper::Pass,
};
use proptest::{prelude::*, sample::select};
use serde_json::{Value, json};

use crate::harness::{decision, script::scripted, wire::Fault as WireFault};

pub const TENANTS: usize = 2;
/// How many runs of a tenant may be open, and what its month may cost, in micros: the second's plan says so.
pub const OPEN_MAX: [usize; TENANTS] = [usize::MAX, 4];
pub const MONTH_MAX: [i64; TENANTS] = [i64::MAX, 4_000_000];
/// What each key of a tenant may spend, in micros: the first's are limited.
pub const KEY_MAX: [Option<i64>; TENANTS] = [Some(4_000_000), None];
/// What runs may cost, in micros.
pub const CAPS: [i64; 4] = [12_000, 500_000, 1_000_000, 2_000_000];
/// Idempotency keys of one tenant.
const KEYS: u8 = 12;

/// What is bought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Job {
    /// An honest decision.
    Decision,
    /// Charges twice; at a small cap its meter refuses the first.
    Charges,
    /// Costs nothing.
    Free,
    /// Costs its cap to the micro.
    WholeCap,
    /// Charges more than its cap, and does not care that its meter refuses.
    AboveCap,
    /// Charges and fails.
    Fails,
    /// Charges and panics.
    Panics,
    /// Charges and takes longer than its timebox, which is a real second.
    Overruns,
    /// Charges and, in a [`Step::Shift`], waits until that ends.
    Waits,
}

/// A payload: two submits are the same if these are.
pub type Order = (Job, usize);

impl Job {
    /// A submit's body. It names itself, so that the model can tell which of a key's payloads became a run.
    pub fn body(self, cap: usize) -> Value {
        let whole = format!("charge {}", usd(CAPS[cap]));
        let acts: &[&str] = match self {
            Self::Decision => &[],
            Self::Charges => &["charge 0.1000", "charge 0.0033"],
            Self::Free => &[],
            Self::WholeCap => &[&whole],
            Self::AboveCap => &["charge 0.0100", "charge 5.0000"],
            Self::Fails => &["charge 0.0070", "fail"],
            Self::Panics => &["charge 0.2000", "panic"],
            Self::Overruns => &["charge 0.0500", "overrun"],
            Self::Waits => &["charge 0.0120", "wait"],
        };
        let cap_usd = usd(CAPS[cap]);
        let mut body = if self == Self::Decision { decision(&cap_usd) } else { scripted(&cap_usd, acts) };
        body["metadata"] = json!({"order": name((self, cap))});
        if self == Self::Overruns {
            body["timebox_sec"] = json!(1);
        }
        body
    }
}

pub fn name(order: Order) -> String {
    format!("{order:?}")
}

/// Micros as a price.
pub fn usd(micros: i64) -> String {
    format!("{}.{:04}", micros / 1_000_000, micros % 1_000_000 / 100)
}

/// A submit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Submit {
    pub tenant: usize,
    pub key: u8,
    pub job: Job,
    pub cap: usize,
}

/// As it is written in a literal.
impl fmt::Debug for Submit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "submit({}, {}, Job::{:?}, {})", self.tenant, self.key, self.job, self.cap)
    }
}

/// What fails while a step happens.
#[derive(Clone, Debug)]
pub enum Outage {
    /// The first flow that comes to this effect.
    At(CrashPoint, CrashFault),
    /// So many calls of an operation of S3, at the wire; a call is tried three times.
    S3(&'static str, WireFault, usize),
    /// The same of SQS, whose calls are tried twice.
    Sqs(&'static str, WireFault, usize),
    /// All sessions of the database are cut as soon as one of them waits for the step's writes.
    Database,
}

/// How a worker's shift ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Its packs come to their end.
    Done,
    /// It is told to stop, and hands back what is still in work.
    HandsBack,
    /// Its beat is held up until its leases have run out and the reaper has given its runs away; then its
    /// packs are stopped.
    LeasesLost,
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Step {
    /// A submit: new, a replay, or another payload under a used key.
    Submit(Submit),
    /// Several at once: copies, rivals for a key, rivals for a budget.
    SubmitAtOnce(Vec<Submit>),
    /// A client resets its connection when its submit has come to this effect.
    HangUp { submit: Submit, at: CrashPoint },
    /// A client looks at the run of one of its keys.
    Look { tenant: usize, key: u8 },
    /// A client cancels the run of one of its keys.
    Cancel { tenant: usize, key: u8 },
    /// The tenant's API key is revoked, and it is given another.
    Revoke { tenant: usize },
    /// A submit under the key that was last revoked.
    SubmitRevoked(Submit),
    /// A worker takes what one receive brings and works on it to the end.
    Work,
    /// A worker with its beat works for a while.
    Shift(Ends),
    /// A worker takes a run and pauses.
    Pause,
    /// A paused worker comes back and delivers, at a cost of its own.
    ZombieFinishes { cost_micros: i64 },
    /// A paused worker comes back and fails its run.
    ZombieFails { used_micros: i64 },
    /// A paused worker comes back and hands its run back.
    ZombieHandsBack,
    /// The paused workers' beat arrives.
    ZombieBeats,
    /// Time passes.
    Wait { secs: i64 },
    /// One pass of the reaper.
    Reap { pass: usize },
    /// Two reapers at once, in one pass or in two.
    ReapTwice { passes: [usize; 2] },
    /// The queue shows each of its messages twice.
    DeliverTwice,
    /// The queue keeps its messages back.
    HoldBack,
    /// What was kept back is delivered, also what was delivered since: it may be of runs that ended long ago.
    DeliverLate,
    /// Requests that were held up at the wire arrive now: results after the verdict, messages after the run.
    ArriveLate,
    /// Messages come again that nobody waits for.
    DeliverAgain,
    /// Something that is no message of ours.
    DeliverForeign,
    /// The queue loses all it has.
    LoseMessages,
    /// Redis forgets everything.
    FlushRedis,
    /// Redis forgets its scripts.
    FlushScripts,
    /// Redis forgets one tenant's holds, as an eviction would.
    EvictHolds { tenant: usize },
    /// Redis writes its snapshot.
    SaveRedis,
    /// Redis comes back with the last snapshot: with all of it, or with one tenant's budget.
    ///
    /// A Redis that loads a snapshot by itself has started anew, and a replica that is promoted has another
    /// history: the budgets that it shows then name another server than the one that answers (ADR 6). The
    /// shared server does not restart, so the snapshot's budgets are made to name another. What is *not*
    /// modelled is a person who restores old keys into the running process under its own identity: with the
    /// epoch unchanged nothing could tell them from live ones, and DPP does not promise to.
    RestoreRedis { tenant: Option<usize> },
    /// Redis closes all connections.
    CutRedis,
    /// PostgreSQL closes all connections.
    CutDatabase,
    /// A budget is rebuilt.
    Rebuild { tenant: usize },
    /// A deposit: new, repeated, or of another amount under a used reference.
    Deposit { tenant: usize, reference: u8, dollars: i64 },
    /// A snapshot of the ledger.
    Snapshot { tenant: usize },
    /// The tenant may not buy.
    Suspend { tenant: usize },
    /// The tenant may buy again.
    Resume { tenant: usize },
    /// All processes start anew, perhaps under another policy for lost runs.
    Restart { refund: bool },
    /// A step with something failing.
    With(Vec<Outage>, Box<Step>),
    /// A step's flow is held up before an effect until other things have happened: a process that was
    /// stopped and goes on.
    During { step: Box<Step>, at: CrashPoint, meanwhile: Vec<Step> },
}

impl Step {
    /// Its kind, for the count.
    pub fn kind(&self) -> String {
        let plain = |step: &Self| {
            let text = format!("{step:?}");
            let end = text.find([' ', '(', '{']).unwrap_or(text.len());
            let name = &text[..end];
            match step {
                Self::Shift(ends) => format!("{name} {ends:?}"),
                _ => name.to_owned(),
            }
        };
        match self {
            Self::With(outages, step) => {
                let what = match &outages[0] {
                    Outage::At(..) => "Crash",
                    Outage::S3(..) => "S3",
                    Outage::Sqs(..) => "SQS",
                    Outage::Database => "Database",
                };
                format!("{} with {what}", step.kind())
            }
            Self::During { step, .. } => format!("{} held up", plain(step)),
            step => plain(step),
        }
    }
}

pub const SUBMIT_POINTS: [CrashPoint; 4] =
    [CrashPoint::SubmitReserve, CrashPoint::SubmitInsert, CrashPoint::SubmitSend, CrashPoint::RebuildSet];
const SUBMIT_FAULTS: [CrashPoint; 8] = [
    CrashPoint::SubmitReserve,
    CrashPoint::SubmitInsert,
    CrashPoint::SubmitSend,
    CrashPoint::SubmitLetGo,
    CrashPoint::RebuildRaise,
    CrashPoint::RebuildSet,
    CrashPoint::RebuildCommit,
    CrashPoint::SweepSettle,
];
const CANCEL_FAULTS: [CrashPoint; 3] = [CrashPoint::CancelEnd, CrashPoint::CancelRequest, CrashPoint::Settle];
const WORK_FAULTS: [CrashPoint; 11] = [
    CrashPoint::TakeReceive,
    CrashPoint::TakeLease,
    CrashPoint::TakeDelete,
    CrashPoint::TakeBury,
    CrashPoint::FinishClaim,
    CrashPoint::FinishPut,
    CrashPoint::FinishEnd,
    CrashPoint::FailEnd,
    CrashPoint::StopEnd,
    CrashPoint::Settle,
    CrashPoint::FinishDelete,
];
const SHIFT_FAULTS: [CrashPoint; 6] = [
    CrashPoint::BeatRenew,
    CrashPoint::BeatHide,
    CrashPoint::HandBackRequeue,
    CrashPoint::HandBackShow,
    CrashPoint::FinishClaim,
    CrashPoint::TakeLease,
];
const REBUILD_FAULTS: [CrashPoint; 3] =
    [CrashPoint::RebuildRaise, CrashPoint::RebuildSet, CrashPoint::RebuildCommit];
const DEPOSIT_FAULTS: [CrashPoint; 5] = [
    CrashPoint::DepositPost,
    CrashPoint::DepositCommit,
    CrashPoint::RebuildRaise,
    CrashPoint::RebuildSet,
    CrashPoint::RebuildCommit,
];
const SNAPSHOT_FAULTS: [CrashPoint; 2] = [CrashPoint::SnapshotWrite, CrashPoint::SnapshotCommit];

/// Passes by number.
pub const LEASES: usize = number(Pass::Leases);
pub const CLAIMS: usize = number(Pass::Claims);
const UNSENT: usize = number(Pass::Unsent);
const RESERVATIONS: usize = number(Pass::Reservations);
const RETENTION: usize = number(Pass::Retention);

const fn number(pass: Pass) -> usize {
    let mut at = 0;
    while Pass::ALL[at] as usize != pass as usize {
        at += 1;
    }
    at
}

/// The effects that a pass comes to.
fn pass_faults(pass: Pass) -> &'static [CrashPoint] {
    match pass {
        Pass::Leases => &[CrashPoint::ExpireRequeue, CrashPoint::ExpireEnd, CrashPoint::Settle],
        Pass::Claims => {
            &[CrashPoint::ReconcileEnd, CrashPoint::ExpireRequeue, CrashPoint::ExpireEnd, CrashPoint::Settle]
        }
        Pass::Waiting => &[CrashPoint::ExpireEnd, CrashPoint::Settle],
        Pass::Unsent => &[CrashPoint::ResendMark, CrashPoint::ResendSend, CrashPoint::ResendPutOff],
        Pass::Reservations => &[
            CrashPoint::SweepSettle,
            CrashPoint::RebuildRaise,
            CrashPoint::RebuildSet,
            CrashPoint::RebuildCommit,
        ],
        Pass::Retention => &[CrashPoint::RetainPurge, CrashPoint::RetainMark],
        // Ledgers here are short: the step takes snapshots by itself.
        Pass::Snapshots | Pass::Usage => &SNAPSHOT_FAULTS,
    }
}

/// Whether a flow holds its tenant's lock before this effect: what waits for the lock would wait for it.
fn under_lock(at: CrashPoint) -> bool {
    use CrashPoint as At;
    matches!(
        at,
        At::RebuildRaise
            | At::RebuildSet
            | At::RebuildCommit
            | At::DepositPost
            | At::DepositCommit
            | At::SnapshotWrite
            | At::SnapshotCommit
    )
}

fn submit() -> BoxedStrategy<Submit> {
    let job = prop_oneof![
        10 => Just(Job::Decision),
        4 => Just(Job::Charges),
        2 => Just(Job::Free),
        2 => Just(Job::WholeCap),
        2 => Just(Job::AboveCap),
        4 => Just(Job::Fails),
        2 => Just(Job::Panics),
        1 => Just(Job::Overruns),
        8 => Just(Job::Waits),
    ];
    let cap = prop_oneof![3 => Just(0), 3 => Just(1), 2 => Just(2), 1 => Just(3)];
    (0..TENANTS, 0..KEYS, job, cap)
        .prop_map(|(tenant, key, job, cap)| Submit { tenant, key, job, cap })
        .boxed()
}

fn cancel() -> BoxedStrategy<Step> {
    (0..TENANTS, 0..KEYS).prop_map(|(tenant, key)| Step::Cancel { tenant, key }).boxed()
}

fn rivals() -> BoxedStrategy<Vec<Submit>> {
    let copies = (submit(), 2..5_usize).prop_map(|(submit, times)| vec![submit; times]);
    let for_a_key = (submit(), submit())
        .prop_map(|(one, two)| vec![one, Submit { tenant: one.tenant, key: one.key, ..two }, one]);
    let for_a_budget = (submit(), 2..5_u8).prop_map(|(submit, count)| {
        (0..count).map(|key| Submit { key: (submit.key + key) % KEYS, ..submit }).collect()
    });
    prop_oneof![copies, for_a_key, for_a_budget].boxed()
}

fn pass() -> BoxedStrategy<usize> {
    // Snapshots come as a step of their own, and ledgers here are too short for usage to be rolled up.
    let passes: Vec<_> = (0..Pass::ALL.len())
        .filter(|pass| !matches!(Pass::ALL[*pass], Pass::Snapshots | Pass::Usage))
        .collect();
    select(passes).boxed()
}

fn work() -> BoxedStrategy<Step> {
    prop_oneof![
        6 => Just(Step::Work),
        1 => Just(Step::Shift(Ends::Done)),
        1 => Just(Step::Shift(Ends::HandsBack)),
        1 => Just(Step::Shift(Ends::LeasesLost)),
    ]
    .boxed()
}

fn outside() -> BoxedStrategy<Step> {
    prop_oneof![
        2 => Just(Step::FlushRedis),
        1 => Just(Step::FlushScripts),
        1 => (0..TENANTS).prop_map(|tenant| Step::EvictHolds { tenant }),
        2 => Just(Step::SaveRedis),
        3 => prop::option::of(0..TENANTS).prop_map(|tenant| Step::RestoreRedis { tenant }),
        1 => Just(Step::CutRedis),
        1 => Just(Step::CutDatabase),
    ]
    .boxed()
}

/// What a paused worker's meter says, in micros; what is above the cap, it has not let pass.
fn price() -> BoxedStrategy<i64> {
    (0..25_000_i64).prop_map(|hundreds| hundreds * 100).boxed()
}

fn plain() -> BoxedStrategy<Step> {
    prop_oneof![
        12 => submit().prop_map(Step::Submit),
        3 => rivals().prop_map(Step::SubmitAtOnce),
        2 => (0..TENANTS, 0..KEYS).prop_map(|(tenant, key)| Step::Look { tenant, key }),
        3 => cancel(),
        1 => (0..TENANTS).prop_map(|tenant| Step::Revoke { tenant }),
        1 => submit().prop_map(Step::SubmitRevoked),
        10 => work(),
        4 => Just(Step::Pause),
        2 => price().prop_map(|cost_micros| Step::ZombieFinishes { cost_micros }),
        1 => price().prop_map(|used_micros| Step::ZombieFails { used_micros }),
        1 => Just(Step::ZombieHandsBack),
        1 => Just(Step::ZombieBeats),
        4 => select(&[1_i64, 2, 4, 60, 4_000, 8_000_000][..]).prop_map(|secs| Step::Wait { secs }),
        8 => pass().prop_map(|pass| Step::Reap { pass }),
        2 => [pass(), pass()].prop_map(|passes| Step::ReapTwice { passes }),
        1 => pass().prop_map(|pass| Step::ReapTwice { passes: [pass, pass] }),
        1 => Just(Step::DeliverTwice),
        1 => Just(Step::HoldBack),
        2 => Just(Step::DeliverLate),
        2 => Just(Step::ArriveLate),
        1 => Just(Step::DeliverAgain),
        1 => Just(Step::DeliverForeign),
        1 => Just(Step::LoseMessages),
        5 => outside(),
        1 => (0..TENANTS).prop_map(|tenant| Step::Rebuild { tenant }),
        3 => deposit(),
        1 => (0..TENANTS).prop_map(|tenant| Step::Snapshot { tenant }),
        1 => (0..TENANTS).prop_map(|tenant| Step::Suspend { tenant }),
        2 => (0..TENANTS).prop_map(|tenant| Step::Resume { tenant }),
        1 => any::<bool>().prop_map(|refund| Step::Restart { refund }),
    ]
    .boxed()
}

fn deposit() -> BoxedStrategy<Step> {
    (0..TENANTS, 0..4_u8, 1..4_i64)
        .prop_map(|(tenant, reference, dollars)| Step::Deposit { tenant, reference, dollars })
        .boxed()
}

fn fault() -> BoxedStrategy<CrashFault> {
    select(&CrashFault::ALL[..]).boxed()
}

fn crash(points: &'static [CrashPoint]) -> BoxedStrategy<Outage> {
    (select(points), fault()).prop_map(|(at, fault)| Outage::At(at, fault)).boxed()
}

fn s3(operations: &'static [&'static str]) -> BoxedStrategy<Outage> {
    let faults = [
        WireFault::Refuse,
        WireFault::LoseAnswer,
        WireFault::Status(403, "AccessDenied"),
        WireFault::Status(503, "SlowDown"),
        WireFault::Late,
        WireFault::Truncate,
        WireFault::Stale,
        WireFault::Hang,
    ];
    (select(operations), select(faults.to_vec()), select(&[1_usize, 3, 3][..]))
        .prop_map(|(operation, fault, times)| {
            let fault = match (operation, fault) {
                // Only one object's reads may lag; the others are held up or cut.
                ("HeadObject", WireFault::Late | WireFault::Truncate) => WireFault::Stale,
                ("HeadObject" | "PutObject", fault) if fault != WireFault::Stale => fault,
                ("HeadObject", fault) => fault,
                (_, WireFault::Stale | WireFault::Truncate) => WireFault::Refuse,
                ("ListObjectsV2", WireFault::Late) => WireFault::LoseAnswer,
                (_, fault) => fault,
            };
            Outage::S3(operation, fault, times)
        })
        .boxed()
}

fn sqs(operations: &'static [&'static str]) -> BoxedStrategy<Outage> {
    let faults = [
        WireFault::Refuse,
        WireFault::LoseAnswer,
        WireFault::Status(403, "AccessDenied"),
        WireFault::Status(503, "ServiceUnavailable"),
        WireFault::Late,
        WireFault::Hang,
    ];
    (select(operations), select(faults.to_vec()), select(&[1_usize, 2, 2][..]))
        .prop_map(|(operation, fault, times)| {
            let fault = match (operation, fault) {
                // A receive that comes after its receiver is gone is one whose answer is lost.
                ("ReceiveMessage", WireFault::Late) => WireFault::LoseAnswer,
                (_, fault) => fault,
            };
            Outage::Sqs(operation, fault, times)
        })
        .boxed()
}

fn with(
    step: impl Strategy<Value = Step> + 'static,
    outage: impl Strategy<Value = Outage> + 'static,
) -> BoxedStrategy<Step> {
    (step, outage).prop_map(|(step, outage)| Step::With(vec![outage], Box::new(step))).boxed()
}

fn failing() -> BoxedStrategy<Step> {
    let shift = select(&[Ends::Done, Ends::HandsBack, Ends::LeasesLost][..]).prop_map(Step::Shift);
    let tenant = || 0..TENANTS;
    prop_oneof![
        8 => with(submit().prop_map(Step::Submit), crash(&SUBMIT_FAULTS)),
        3 => with(cancel(), crash(&CANCEL_FAULTS)),
        1 => with(cancel(), Just(Outage::Database)),
        1 => with(rivals().prop_map(Step::SubmitAtOnce), crash(&SUBMIT_FAULTS)),
        10 => with(Just(Step::Work), crash(&WORK_FAULTS)),
        2 => with(shift, crash(&SHIFT_FAULTS)),
        8 => reaps(),
        1 => with(tenant().prop_map(|tenant| Step::Rebuild { tenant }), crash(&REBUILD_FAULTS)),
        2 => with(deposit(), crash(&DEPOSIT_FAULTS)),
        1 => with(tenant().prop_map(|tenant| Step::Snapshot { tenant }), crash(&SNAPSHOT_FAULTS)),
        6 => with(Just(Step::Work), s3(&["PutObject"])),
        3 => with(Just(Step::Reap { pass: CLAIMS }), s3(&["HeadObject", "ListObjectsV2"])),
        1 => with(Just(Step::Reap { pass: RETENTION }), s3(&["ListObjectsV2", "DeleteObjects"])),
        2 => with(submit().prop_map(Step::Submit), sqs(&["SendMessageBatch"])),
        2 => with(Just(Step::Work), sqs(&["ReceiveMessage", "DeleteMessageBatch"])),
        1 => with(Just(Step::Reap { pass: UNSENT }), sqs(&["SendMessageBatch"])),
        1 => with(submit().prop_map(Step::Submit), Just(Outage::Database)),
        1 => with(Just(Step::Work), Just(Outage::Database)),
        1 => with(deposit(), Just(Outage::Database)),
        1 => with(pass().prop_map(|pass| Step::Reap { pass }), Just(Outage::Database)),
    ]
    .boxed()
}

fn held_up() -> BoxedStrategy<Step> {
    let step = prop_oneof![
        4 => (submit().prop_map(Step::Submit), select(&SUBMIT_FAULTS[..])),
        2 => (cancel(), select(&CANCEL_FAULTS[..])),
        4 => (Just(Step::Work), select(&WORK_FAULTS[..])),
        2 => pass().prop_flat_map(|pass| (Just(Step::Reap { pass }), select(pass_faults(Pass::ALL[pass])))),
        1 => (deposit(), select(&DEPOSIT_FAULTS[..])),
        1 => ((0..TENANTS).prop_map(|tenant| Step::Snapshot { tenant }), select(&SNAPSHOT_FAULTS[..])),
        1 => ((0..TENANTS).prop_map(|tenant| Step::Rebuild { tenant }), select(&REBUILD_FAULTS[..])),
    ];
    step.prop_flat_map(|(step, at)| {
        let among = if under_lock(at) { outside().boxed() } else { prop_oneof![plain(), failing()].boxed() };
        (Just(step), Just(at), prop::collection::vec(among, 1..5))
            .prop_map(|(step, at, meanwhile)| Step::During { step: Box::new(step), at, meanwhile })
    })
    .boxed()
}

/// A few steps of which the first give the last something to do: by themselves, faults seldom strike.
fn phrase() -> BoxedStrategy<Vec<Step>> {
    let hang_up = (submit(), select(&SUBMIT_POINTS[..])).prop_map(|(submit, at)| Step::HangUp { submit, at });
    let one = prop_oneof![60 => plain(), 28 => failing(), 8 => held_up(), 2 => hang_up];
    let bought = || submit().prop_map(Step::Submit);
    let wait = || select(&[4_i64, 4, 4_000]).prop_map(|secs| Step::Wait { secs });
    let lost = || {
        prop_oneof![
            2 => Just(Step::Pause),
            2 => with(Just(Step::Work), crash(&[CrashPoint::TakeLease, CrashPoint::FinishClaim, CrashPoint::FinishEnd])),
            2 => with(Just(Step::Work), s3(&["PutObject"])),
            1 => Just(Step::LoseMessages),
            1 => with(Just(Step::Work), crash(&[CrashPoint::Settle])),
        ]
    };
    let repaired = || prop_oneof![2 => plain(), 3 => failing(), 1 => held_up()];
    let purged = with(
        Just(Step::Reap { pass: RETENTION }),
        prop_oneof![
            s3(&["ListObjectsV2", "DeleteObjects"]),
            crash(&[CrashPoint::RetainPurge, CrashPoint::RetainMark])
        ],
    );
    let claims = || Step::Reap { pass: CLAIMS };
    let unknown = (
        bought(),
        prop_oneof![
            Just(vec![Outage::At(CrashPoint::FinishEnd, CrashFault::DiesBefore)]),
            Just(vec![Outage::At(CrashPoint::FinishPut, CrashFault::DiesAfter)]),
            Just(vec![Outage::S3("PutObject", WireFault::LoseAnswer, 3)]),
            Just(vec![Outage::S3("PutObject", WireFault::Late, 3)]),
        ],
        with(Just(claims()), s3(&["HeadObject", "ListObjectsV2"])),
    );
    let back = prop_oneof![
        2 => price().prop_map(|cost_micros| Step::ZombieFinishes { cost_micros }),
        1 => price().prop_map(|used_micros| Step::ZombieFails { used_micros }),
        1 => Just(Step::ZombieHandsBack),
        1 => Just(Step::ZombieBeats),
    ];
    let zombie = (bought(), prop_oneof![Just(Step::Work), Just(Step::Pause), plain()], back);
    prop_oneof![
        6 => one.prop_map(|step| vec![step]),
        2 => tight(),
        1 => unknown.prop_map(move |(bought, outages, look)| {
            let lost = Step::With(outages, Box::new(Step::Work));
            vec![bought, lost, Step::Wait { secs: 4 }, look, claims()]
        }),
        1 => zombie.prop_map(|(bought, other, back)| {
            let given_away = Step::ReapTwice { passes: [LEASES, UNSENT] };
            vec![bought, Step::Pause, Step::Wait { secs: 4 }, given_away, other, back]
        }),
        2 => (bought(), repaired()).prop_map(|(bought, step)| vec![bought, step]),
        2 => (bought(), prop_oneof![work(), with(work(), crash(&WORK_FAULTS))])
            .prop_map(|(bought, step)| vec![bought, step]),
        2 => (bought(), lost(), wait(), reaps()).prop_map(|(bought, lost, wait, step)| vec![bought, lost, wait, step]),
        1 => (bought(), lost(), wait(), repaired(), repaired())
            .prop_map(|(bought, lost, wait, one, two)| vec![bought, lost, wait, one, two]),
        1 => (bought(), purged)
            .prop_map(|(bought, purged)| vec![bought, Step::Work, Step::Wait { secs: 8_000_000 }, purged]),
    ]
    .boxed()
}

/// Two large submits of one tenant, of which one is held up or Redis comes back without it: whoever counts on
/// what Redis says alone sells the same money twice.
fn tight() -> BoxedStrategy<Vec<Step>> {
    let large = (0..TENANTS, 0..KEYS, 1..KEYS, 1..CAPS.len(), 2..CAPS.len());
    let forgets = |tenant| {
        prop_oneof![
            Just(vec![Step::FlushRedis]),
            Just(vec![Step::RestoreRedis { tenant: None }]),
            Just(vec![Step::RestoreRedis { tenant: Some(tenant) }]),
            Just(vec![Step::Rebuild { tenant }]),
            Just(vec![Step::EvictHolds { tenant }, Step::Reap { pass: RESERVATIONS }]),
            (0..4_u8).prop_map(move |reference| vec![Step::Deposit { tenant, reference, dollars: 1 }]),
        ]
    };
    let points = [CrashPoint::SubmitReserve, CrashPoint::SubmitInsert, CrashPoint::SubmitSend];
    let one = large.prop_flat_map(move |(tenant, key, other, one, two)| {
        (
            Just((tenant, one, two)),
            Just((key, (key + other) % KEYS)),
            forgets(tenant),
            select(points.to_vec()),
            any::<bool>(),
        )
    });
    one.prop_map(|((tenant, one, two), (key, other), forgets, at, held_up)| {
        let submit = |key, cap| Step::Submit(Submit { tenant, key, job: Job::Decision, cap });
        if held_up {
            let meanwhile = [forgets, vec![submit(other, two)]].concat();
            vec![Step::SaveRedis, Step::During { step: Box::new(submit(key, one)), at, meanwhile }]
        } else {
            [vec![Step::SaveRedis, submit(key, one)], forgets, vec![submit(other, two)]].concat()
        }
    })
    .boxed()
}

/// A pass, with or without something failing.
fn reaps() -> BoxedStrategy<Step> {
    let failing = pass().prop_flat_map(|pass| {
        (Just(pass), select(pass_faults(Pass::ALL[pass])), fault()).prop_map(|(pass, at, fault)| {
            Step::With(vec![Outage::At(at, fault)], Box::new(Step::Reap { pass }))
        })
    });
    prop_oneof![1 => pass().prop_map(|pass| Step::Reap { pass }), 2 => failing].boxed()
}

/// A sequence.
pub fn steps() -> BoxedStrategy<Vec<Step>> {
    prop::collection::vec(phrase(), 1..30).prop_map(|phrases| phrases.concat()).boxed()
}
