//! The Lua scripts against a model: the same random calls to both, and the same answers and figures.

use std::collections::BTreeMap;

use dpp::{
    budget::{Budget, Hold, Rebuilt, Reserve},
    domain::{
        id::{RunId, TenantId, TraceId},
        idempotency::PayloadHash,
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
    /// Asks for an amount under one of a few keys, with one of two payloads.
    Reserve { key: u8, payload: u8, micros: i64 },
    /// Ends the hold of the run that this key had last, at a share of it in percent.
    Settle { key: u8, percent: i64 },
    /// Sets the budget anew, with the open holds of the model or, as after their ends, without.
    Rebuild { epoch_step: i64, available: i64, holds: bool },
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

/// What Redis should be: no Lua, no hashes, forty lines.
#[derive(Default)]
struct Model {
    known: Option<(i64, i64)>,
    holds: BTreeMap<u8, ModelHold>,
}

impl Model {
    fn reserve(&mut self, key: u8, payload: u8, micros: i64, run: RunId) -> Reserve {
        let Some((epoch, available)) = self.known else { return Reserve::Unknown };
        if let Some(hold) = self.holds.get(&key) {
            return if hold.payload == payload {
                Reserve::Held { epoch, run_id: hold.run }
            } else {
                Reserve::Mismatch
            };
        }
        if available < micros {
            return Reserve::Short { available: UsdMicros::new(available).unwrap() };
        }
        self.known = Some((epoch, available - micros));
        self.holds.insert(key, ModelHold { run, payload, micros });
        Reserve::Held { epoch, run_id: run }
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

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..6_u8, 0..2_u8, amounts()).prop_map(|(key, payload, micros)| Step::Reserve { key, payload, micros }),
        4 => (0..6_u8, 0..=100_i64).prop_map(|(key, percent)| Step::Settle { key, percent }),
        2 => (-1..3_i64, prop_oneof![0..5_000_000_i64, Just(UsdMicros::MAX.get())], any::<bool>())
            .prop_map(|(epoch_step, available, holds)| Step::Rebuild { epoch_step, available, holds }),
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
                    Step::Reserve { key, payload, micros } => {
                        let run = RunId::new();
                        let hash = PayloadHash([payload; 32]);
                        let real =
                            budget.reserve(tenant, run, usd(micros), &format!("k{key}"), hash).await.unwrap();
                        let expected = model.reserve(key, payload, micros, run);
                        prop_assert_eq!(&real, &expected);
                        if let Reserve::Held { run_id, .. } = real {
                            let held = model.holds[&key].micros;
                            last_runs.insert(key, (run_id, held));
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
                    Step::Rebuild { epoch_step, available, holds: kept } => {
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
                        let real = budget.rebuild(tenant, epoch, usd(available), &holds).await.unwrap();
                        match model.known {
                            Some((known, _)) if known > epoch => {
                                prop_assert_eq!(real, Rebuilt::Older { epoch: known });
                            }
                            _ => {
                                prop_assert_eq!(real, Rebuilt::Set);
                                model.known = Some((epoch, available));
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

/// Redis that evicts throws away one hash of a budget and not the others.
#[tokio::test]
async fn what_is_left_of_a_budget_still_settles_and_touches_no_other_run() {
    let place = shared().place().await;
    let budget = Budget::new(&place.redis_url.clone().into(), None, 2).unwrap();
    let tenant = TenantId::new();
    let hash = |name: &str| format!("dpp:{{{tenant}}}:{name}");
    let reserve = async || {
        let reserved = budget.reserve(tenant, RunId::new(), usd(1_000_000), "k", PayloadHash([0; 32])).await;
        let Reserve::Held { run_id, .. } = reserved.unwrap() else { panic!("not held") };
        run_id
    };
    let settle = async |run: RunId| {
        budget.settle(&Settled::won(run, tenant, TraceId::new(), usd(250_000))).await.unwrap();
        budget.inspect(tenant).await.unwrap().budget.unwrap().available_usd_micros
    };
    assert_eq!(budget.rebuild(tenant, 1, usd(10_000_000), &[]).await.unwrap(), Rebuilt::Set);

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
