//! The verdict on a stale claim, exhaustively, as the policy that it is.

use std::collections::HashMap;

use dpp::domain::{
    id::{FinalizeToken, RunId, TenantId},
    money::UsdMicros,
    receipt::Receipt,
    reconcile::{Sight, Verdict, judge},
    run::Claim,
};
use proptest::prelude::*;

const CLAIMED: UsdMicros = UsdMicros::constant(12_000);
const RESERVED: UsdMicros = UsdMicros::constant(1_000_000);

fn claim() -> Claim {
    Claim {
        token: FinalizeToken::new(),
        claimed_at: chrono::DateTime::UNIX_EPOCH,
        result_key: "t/r/1-x/pack_envelope.json".to_owned(),
        cost: CLAIMED,
        sha256: "a".repeat(64),
    }
}

#[test]
fn only_what_the_winner_committed_to_is_rolled_forward() {
    let (run, tenant) = (RunId::new(), TenantId::new());
    let good = Receipt { run_id: run, tenant_id: tenant, cost: CLAIMED, sha256: "a".repeat(64) };
    let verdict =
        |receipt: Receipt| judge(run, tenant, RESERVED, &claim(), &Sight::Present { receipt: Ok(receipt) });

    assert_eq!(verdict(good.clone()), Verdict::RollForward { cost: CLAIMED });
    let contradictions = [
        Receipt { run_id: RunId::new(), ..good.clone() },
        Receipt { tenant_id: TenantId::new(), ..good.clone() },
        Receipt { cost: UsdMicros::constant(12_001), ..good.clone() },
        Receipt { cost: UsdMicros::constant(11_999), ..good.clone() },
        Receipt { cost: UsdMicros::constant(1_000_001), ..good.clone() },
        Receipt { sha256: "b".repeat(64), ..good.clone() },
    ];
    for receipt in contradictions {
        assert!(matches!(verdict(receipt.clone()), Verdict::Audit(_)), "{receipt:?}");
    }
    // A claim above the hold binds nobody; one of the whole hold does.
    for (micros, fits) in [(1_000_000, true), (1_000_001, false)] {
        let cost = UsdMicros::constant(micros);
        let receipt = Receipt { cost, ..good.clone() };
        let claim = Claim { cost, ..claim() };
        let verdict = judge(run, tenant, RESERVED, &claim, &Sight::Present { receipt: Ok(receipt) });
        assert_eq!(verdict == Verdict::RollForward { cost }, fits, "{verdict:?}");
    }
    let judged = |sight| judge(run, tenant, RESERVED, &claim(), &sight);
    assert_eq!(judged(Sight::Absent), Verdict::RollBack);
    assert_eq!(judged(Sight::Unknown), Verdict::NotYet);
    let malformed = Receipt::from_metadata(&HashMap::new());
    assert!(matches!(judged(Sight::Present { receipt: malformed }), Verdict::Audit(_)));
}

proptest! {
    #[test]
    fn no_verdict_charges_more_than_the_hold(cost in 0..2_000_000_i64, reserved in 5_000..1_000_000_i64, claimed in 0..2_000_000_i64) {
        let (run, tenant) = (RunId::new(), TenantId::new());
        let amount = |micros| UsdMicros::new(micros).unwrap();
        let claim = Claim { cost: amount(claimed), ..claim() };
        let receipt = Receipt { run_id: run, tenant_id: tenant, cost: amount(cost), sha256: claim.sha256.clone() };
        if let Verdict::RollForward { cost } =
            judge(run, tenant, amount(reserved), &claim, &Sight::Present { receipt: Ok(receipt) })
        {
            prop_assert!(cost <= amount(reserved) && cost == claim.cost);
        }
    }

    #[test]
    fn a_receipt_survives_its_metadata_and_nothing_is_clamped(micros in 0..=UsdMicros::MAX.get(), noise in "\\PC{0,20}") {
        let receipt = Receipt {
            run_id: RunId::new(),
            tenant_id: TenantId::new(),
            cost: UsdMicros::new(micros).unwrap(),
            sha256: "0123456789abcdef".repeat(4),
        };
        let metadata = receipt.to_metadata();
        prop_assert_eq!(Receipt::from_metadata(&metadata).unwrap(), receipt);
        for name in metadata.keys() {
            let mut missing = metadata.clone();
            missing.remove(name);
            prop_assert!(Receipt::from_metadata(&missing).is_err());
            let mut noisy = metadata.clone();
            noisy.insert(name.clone(), format!("{noise}?"));
            prop_assert!(Receipt::from_metadata(&noisy).is_err());
        }
        for wrong in ["-1", "+1", "1.0", "1e3", "", "9223372036854775808", "1000000000000001"] {
            let mut wrong_cost = metadata.clone();
            wrong_cost.insert("actual-cost-usd-micros".to_owned(), wrong.to_owned());
            prop_assert!(Receipt::from_metadata(&wrong_cost).is_err(), "{}", wrong);
        }
        for wrong in ["a".repeat(63), "a".repeat(65), "g".repeat(64), "A".repeat(64)] {
            let mut wrong_hash = metadata.clone();
            wrong_hash.insert("sha256".to_owned(), wrong.clone());
            prop_assert!(Receipt::from_metadata(&wrong_hash).is_err(), "{}", wrong);
        }
    }
}
