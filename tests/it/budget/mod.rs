//! The Lua scripts against a model: the same random calls to both, and the same answers and figures.

use std::{collections::BTreeMap, time::Duration};

use dpp::{
    budget::{Ask, Budget, Hold, Poll, Rebuilt, Reserve},
    domain::{
        id::{KeyId, RunId, TenantId, TraceId},
        idempotency::PayloadHash,
        limit::{Counted, GateLimits, KeyLimits, Month, Of, Quota, WINDOW},
        money::UsdMicros,
        run::Settled,
    },
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::harness::services::shared;

/// One call.
#[derive(Clone, Debug)]
enum Step {
    /// Asks for an amount under one of a few keys, with one of two payloads, within limits.
    Reserve { key: u8, payload: u8, micros: i64, limits: GateLimits },
    /// Takes a key that came to nothing out of the windows.
    Uncount { key: u8, limits: GateLimits },
    /// Ends the hold of the run that this key had last, at a share of it in percent.
    Settle { key: u8, percent: i64 },
    /// Sets the budget anew, with the open holds of the model or, as after their ends, without.
    Rebuild { epoch_step: i64, available: i64, holds: bool, month: i64, before: i64 },
    /// Redis forgets everything.
    Flush,
    /// Redis forgets its scripts.
    FlushScripts,
}

#[derive(Clone, Debug, PartialEq)]
struct ModelHold {
    run: RunId,
    payload: u8,
    micros: i64,
}

/// What Redis should be: no Lua, no hashes, a page.
#[derive(Default)]
struct Model {
    known: Option<(i64, i64)>,
    base: (i64, i64),
    holds: BTreeMap<u8, ModelHold>,
    /// The keys that count in the tenant's window and in the API key's; no test is as long as a window.
    windows: [Vec<u8>; 2],
}

impl Model {
    fn reserve(&mut self, key: u8, payload: u8, micros: i64, run: RunId, limits: GateLimits) -> Reserve {
        let Some((epoch, available)) = self.known else { return Reserve::Unknown };
        let maxima = [limits.runs_per_minute, limits.key_runs_per_minute.map_or(0, |(_, max)| max)];
        let counted = |window: &Vec<u8>| window.iter().filter(|other| **other != key).count() as i32;
        let used = [counted(&self.windows[0]), counted(&self.windows[1])];
        let quota = |at: usize, taken: i32| Quota {
            of: [Of::Tenant, Of::Key][at],
            counted: Counted::Runs,
            max: maxima[at],
            left: (maxima[at] - used[at] - taken).max(0),
            more_in: Duration::ZERO,
        };
        let quotas = || (0..2).filter(|at| maxima[*at] > 0).map(|at| quota(at, 1)).collect();
        if let Some(hold) = self.holds.get(&key) {
            return if hold.payload == payload {
                Reserve::Held { epoch, run_id: hold.run, quotas: quotas() }
            } else {
                Reserve::Mismatch
            };
        }
        if let Some(at) = (0..2).find(|at| maxima[*at] > 0 && used[*at] >= maxima[*at]) {
            return Reserve::Limited(Quota { left: 0, ..quota(at, 0) });
        }
        if limits.concurrent_runs_max > 0 && self.holds.len() as i32 >= limits.concurrent_runs_max {
            return Reserve::Crowded;
        }
        if let Some((month, max)) = limits.monthly_spend_max {
            let (of, base) = self.base;
            if of < month.0 {
                return Reserve::Unknown;
            }
            if base - available + micros > max.get() {
                return Reserve::Spent { available: usd(available), base: usd(base) };
            }
        }
        if available < micros {
            return Reserve::Short { available: usd(available) };
        }
        self.known = Some((epoch, available - micros));
        self.holds.insert(key, ModelHold { run, payload, micros });
        let quotas = quotas();
        for (window, max) in self.windows.iter_mut().zip(maxima) {
            if max > 0 && !window.contains(&key) {
                window.push(key);
            }
        }
        Reserve::Held { epoch, run_id: run, quotas }
    }

    fn settle(&mut self, key: u8, charge: i64) {
        if let (Some(hold), Some((epoch, available))) = (self.holds.remove(&key), self.known) {
            self.known = Some((epoch, available + hold.micros - charge));
        }
    }
}

fn amounts() -> impl Strategy<Value = i64> {
    prop_oneof![5_000..2_000_000_i64, Just(UsdMicros::MAX.get()), Just(UsdMicros::MAX.get() - 1), Just(5_000)]
}

/// Most steps have few limits, so that each is met alone too.
fn limits() -> impl Strategy<Value = GateLimits> {
    let rare = |max: i32| prop_oneof![3 => Just(0), 1 => 1..max];
    let month = (0..3_i64, prop_oneof![5_000..4_000_000_i64, Just(UsdMicros::MAX.get())])
        .prop_map(|(month, max)| Some((Month(month), usd(max))));
    (rare(6), rare(4), rare(4), prop_oneof![3 => Just(None), 1 => month]).prop_map(
        |(runs_per_minute, key_runs, concurrent_runs_max, monthly_spend_max)| GateLimits {
            runs_per_minute,
            key_runs_per_minute: Some((ROOT, key_runs)).filter(|(_, max)| *max > 0),
            concurrent_runs_max,
            monthly_spend_max,
        },
    )
}

/// The key whose limits they are.
const ROOT: KeyId = KeyId(uuid::Uuid::nil());

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..6_u8, 0..2_u8, amounts(), limits())
            .prop_map(|(key, payload, micros, limits)| Step::Reserve { key, payload, micros, limits }),
        3 => (0..6_u8, limits()).prop_map(|(key, limits)| Step::Uncount { key, limits }),
        4 => (0..6_u8, 0..=100_i64).prop_map(|(key, percent)| Step::Settle { key, percent }),
        2 => (-1..3_i64, prop_oneof![0..5_000_000_i64, Just(UsdMicros::MAX.get())], any::<bool>(), 0..3_i64, 0..2_000_000_i64)
            .prop_map(|(epoch_step, available, holds, month, before)| {
                Step::Rebuild { epoch_step, available, holds, month, before }
            }),
        1 => Just(Step::Flush),
        1 => Just(Step::FlushScripts),
    ];
    prop::collection::vec(step, 1..40)
}

fn usd(micros: i64) -> UsdMicros {
    UsdMicros::new(micros).unwrap()
}

#[test]
fn the_scripts_do_what_the_model_does() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let place = runtime.block_on(shared().place());
    let budget = Budget::new(&place.redis_url.clone().into(), None, 2).unwrap();
    let mut runner = TestRunner::new(Config { cases: 60, ..Config::default() });
    let outcome = runner.run(&(steps(), 0..2_u8), |(steps, _)| {
        runtime.block_on(async {
            let tenant = TenantId::new();
            let mut model = Model::default();
            let mut last_runs: BTreeMap<u8, (RunId, i64)> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Reserve { key, payload, micros, limits } => {
                        let run = RunId::new();
                        let hash = PayloadHash([payload; 32]);
                        let ask = Ask {
                            tenant_id: tenant,
                            run_id: run,
                            amount: usd(micros),
                            key_fingerprint: &format!("k{key}"),
                            payload: hash,
                            limits,
                        };
                        let mut real = budget.reserve(ask).await.unwrap();
                        let quotas = match &mut real {
                            Reserve::Held { quotas, .. } => quotas.iter_mut().collect(),
                            Reserve::Limited(quota) => vec![quota],
                            _ => Vec::new(),
                        };
                        for quota in quotas {
                            prop_assert!(quota.more_in <= WINDOW && WINDOW / 2 < quota.more_in);
                            quota.more_in = Duration::ZERO;
                        }
                        let expected = model.reserve(key, payload, micros, run, limits);
                        prop_assert_eq!(&real, &expected);
                        if let Reserve::Held { run_id, .. } = real {
                            let held = model.holds[&key].micros;
                            last_runs.insert(key, (run_id, held));
                        }
                    }
                    Step::Uncount { key, limits } => {
                        budget.uncount(tenant, &format!("k{key}"), limits).await.unwrap();
                        if !model.holds.contains_key(&key) {
                            let of_key = limits.key_runs_per_minute.is_some();
                            for window in model.windows.iter_mut().take(if of_key { 2 } else { 1 }) {
                                window.retain(|other| *other != key);
                            }
                        }
                    }
                    Step::Settle { key, percent } => {
                        // Sometimes of a hold that has ended: then nothing may change.
                        let Some((run, held)) = last_runs.get(&key).copied() else { continue };
                        let charge = held / 100 * percent;
                        let settled = Settled::won(run, tenant, TraceId::new(), usd(charge));
                        budget.settle(&settled).await.unwrap();
                        if model.holds.get(&key).is_some_and(|hold| hold.run == run) {
                            model.settle(key, charge);
                        }
                        budget.settle(&settled).await.unwrap();
                    }
                    Step::Rebuild { epoch_step, available, holds: kept, month, before } => {
                        let epoch = model.known.map_or(10, |(epoch, _)| epoch) + epoch_step;
                        let older = model.known.is_some_and(|(known, _)| known > epoch);
                        if !kept && !older {
                            model.holds.clear();
                        }
                        let keys: Vec<_> = model.holds.keys().map(|key| format!("k{key}")).collect();
                        let holds: Vec<_> = model
                            .holds
                            .values()
                            .zip(&keys)
                            .map(|(hold, key)| Hold {
                                run_id: hold.run,
                                amount: usd(hold.micros),
                                key_fingerprint: key,
                                payload: PayloadHash([hold.payload; 32]),
                            })
                            .collect();
                        let base = (available + before).min(UsdMicros::MAX.get());
                        let of_month = (Month(month), usd(base));
                        let real =
                            budget.rebuild(tenant, epoch, usd(available), of_month, &holds).await.unwrap();
                        match model.known {
                            Some((known, _)) if known > epoch => {
                                prop_assert_eq!(real, Rebuilt::Older { epoch: known });
                            }
                            _ => {
                                prop_assert_eq!(real, Rebuilt::Set);
                                model.known = Some((epoch, available));
                                model.base = (month, base);
                            }
                        }
                    }
                    Step::Flush => {
                        let _: String = place.redis(&["FLUSHDB"]).await;
                        model = Model::default();
                    }
                    Step::FlushScripts => {
                        let _: String = place.redis(&["SCRIPT", "FLUSH"]).await;
                    }
                }
                let seen = budget.inspect(tenant).await.unwrap();
                let figures = seen.budget.map(|budget| (budget.epoch, budget.available_usd_micros));
                prop_assert_eq!(figures, model.known);
                let base = seen.budget.map(|budget| budget.base.map(|(month, base)| (month.0, base)));
                prop_assert_eq!(base, model.known.map(|_| Some(model.base)));
                let holds: BTreeMap<_, _> =
                    seen.holds.iter().map(|(run, hold)| (*run, hold.amount_usd_micros)).collect();
                let expected: BTreeMap<_, _> =
                    model.holds.values().map(|hold| (hold.run, hold.micros)).collect();
                prop_assert_eq!(holds, expected);
            }
            Ok(())
        })
    });
    outcome.unwrap();
}

/// Never more than the limit in any window, however the requests lie to its edges; and what leaves the window
/// makes room.
#[test]
fn no_window_holds_more_than_its_limit() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let place = runtime.block_on(shared().place());
    let budget = Budget::new(&place.redis_url.clone().into(), None, 2).unwrap();
    runtime.block_on(async {
        let tenant = TenantId::new();
        let window = format!("dpp:{{{tenant}}}:polls");
        let key = KeyLimits { root: ROOT, runs_per_minute: 0, polls_per_minute: 2, spend_max: None };
        // Time passes by moving what was counted.
        let pass = async |by: Duration| {
            for window in [window.clone(), format!("{window}:{ROOT}")] {
                let counted: Vec<String> = place.redis(&["ZRANGE", &window, "0", "-1"]).await;
                for name in counted {
                    let by = format!("-{}", by.as_millis());
                    let _: String = place.redis(&["ZINCRBY", &window, &by, &name]).await;
                }
            }
        };
        let left = |poll: &Poll| match poll {
            Poll::Taken(quotas) => quotas.iter().map(|quota| quota.left).collect::<Vec<_>>(),
            Poll::Limited(quota) => panic!("{quota:?}"),
        };
        assert_eq!(left(&budget.poll(tenant, 3, None).await.unwrap()), [2]);
        pass(Duration::from_secs(59)).await;
        assert_eq!(left(&budget.poll(tenant, 3, Some(&key)).await.unwrap()), [1, 1]);
        assert_eq!(left(&budget.poll(tenant, 3, Some(&key)).await.unwrap()), [0, 0]);
        let Poll::Limited(quota) = budget.poll(tenant, 3, None).await.unwrap() else { panic!("a fourth") };
        assert_eq!((quota.of, quota.max, quota.left), (Of::Tenant, 3, 0));
        assert!(quota.more_in <= Duration::from_secs(1), "{quota:?}");
        pass(Duration::from_secs(1)).await;
        // The first has left; the other two are in the tenant's window and the key's.
        let Poll::Limited(quota) = budget.poll(tenant, 3, Some(&key)).await.unwrap() else {
            panic!("a third")
        };
        assert_eq!((quota.of, quota.max), (Of::Key, 2));
        assert_eq!(left(&budget.poll(tenant, 3, None).await.unwrap()), [0]);
        let expires: i64 = place.redis(&["PTTL", &window]).await;
        assert!((0..=60_000).contains(&expires), "{expires}");
        // A clock that went back an hour shuts nobody out.
        pass(Duration::ZERO).await;
        let counted: Vec<String> = place.redis(&["ZRANGE", &window, "0", "-1"]).await;
        for name in counted {
            let _: String = place.redis(&["ZINCRBY", &window, "3600000", &name]).await;
        }
        assert_eq!(left(&budget.poll(tenant, 3, None).await.unwrap()), [2]);
    });
}

/// A submit that came to nothing counts in no window; one whose copy holds does.
#[tokio::test]
async fn only_a_submit_that_holds_nothing_is_taken_out_of_the_windows() {
    let place = shared().place().await;
    let budget = Budget::new(&place.redis_url.clone().into(), None, 2).unwrap();
    let tenant = TenantId::new();
    let set = budget.rebuild(tenant, 1, usd(5_000_000), (Month(0), usd(5_000_000)), &[]).await.unwrap();
    assert_eq!(set, Rebuilt::Set);
    let limits = GateLimits {
        runs_per_minute: 9,
        key_runs_per_minute: Some((ROOT, 5)),
        concurrent_runs_max: 0,
        monthly_spend_max: None,
    };
    let reserve = async |key_fingerprint: &str| {
        let (run_id, amount, payload) = (RunId::new(), usd(1_000_000), PayloadHash([0; 32]));
        let ask = Ask { tenant_id: tenant, run_id, amount, key_fingerprint, payload, limits };
        let reserved = budget.reserve(ask).await.unwrap();
        let Reserve::Held { quotas, .. } = reserved else { panic!("not held") };
        (run_id, quotas.iter().map(|quota| quota.left).collect::<Vec<_>>())
    };
    let (one, left) = reserve("one").await;
    assert_eq!(left, [8, 4]);
    budget.uncount(tenant, "one", limits).await.unwrap();
    assert_eq!(reserve("two").await.1, [7, 3], "it holds");
    budget.let_go(tenant, one).await.unwrap();
    budget.uncount(tenant, "one", limits).await.unwrap();
    assert_eq!(reserve("three").await.1, [7, 3]);
}

/// Redis that evicts throws away one hash of a budget and not the others.
#[tokio::test]
async fn what_is_left_of_a_budget_still_settles_and_touches_no_other_run() {
    let place = shared().place().await;
    let budget = Budget::new(&place.redis_url.clone().into(), None, 2).unwrap();
    let tenant = TenantId::new();
    let hash = |name: &str| format!("dpp:{{{tenant}}}:{name}");
    let reserve = async || {
        let ask = Ask {
            tenant_id: tenant,
            run_id: RunId::new(),
            amount: usd(1_000_000),
            key_fingerprint: "k",
            payload: PayloadHash([0; 32]),
            limits: GateLimits::default(),
        };
        let reserved = budget.reserve(ask).await;
        let Reserve::Held { run_id, .. } = reserved.unwrap() else { panic!("not held") };
        run_id
    };
    let settle = async |run: RunId| {
        budget.settle(&Settled::won(run, tenant, TraceId::new(), usd(250_000))).await.unwrap();
        budget.inspect(tenant).await.unwrap().budget.unwrap().available_usd_micros
    };
    assert_eq!(
        budget.rebuild(tenant, 1, usd(10_000_000), (Month(1), usd(10_000_000)), &[]).await.unwrap(),
        Rebuilt::Set
    );

    // Without its key a submit that is repeated is held as another run, and that one keeps the key.
    let first = reserve().await;
    let _: i64 = place.redis(&["DEL", &hash("keys")]).await;
    let second = reserve().await;
    assert_ne!(first, second);
    assert_eq!(settle(first).await, 8_750_000);
    assert_eq!(reserve().await, second, "its key is its own");

    let _: i64 = place.redis(&["DEL", &hash("admits")]).await;
    assert_eq!(settle(second).await, 9_500_000);
    assert!(budget.inspect(tenant).await.unwrap().holds.is_empty());
    place.release().await;
}
