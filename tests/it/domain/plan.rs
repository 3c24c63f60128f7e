//! What a plan admits, to the micro and the second.

use std::collections::BTreeMap;

use dpp::domain::{
    money::UsdMicros,
    plan::{Plan, PlanRefusal},
};

fn usd(text: &str) -> UsdMicros {
    text.parse().unwrap()
}

#[test]
fn a_plan_admits_what_is_within_its_limits_and_nothing_beside() {
    let plan = Plan {
        plan: "small".to_owned(),
        allowed_packs: Some(vec!["decision".to_owned(), "url".to_owned()]),
        run_cost_max: usd("2"),
        pack_cost_max: BTreeMap::from([("url".to_owned(), usd("0.5")), ("decision".to_owned(), usd("3"))]),
        runs_per_minute: 0,
        polls_per_minute: 0,
        concurrent_runs_max: 0,
        monthly_spend_max: UsdMicros::ZERO,
        timebox_secs_max: 60,
        retention_days: 1,
    };
    let too_low = Err(PlanRefusal::MaxCostTooLow { least: usd("0.005") });
    let above = |limit| Err(PlanRefusal::MaxCostExceedsPlan { limit: usd(limit) });
    let out_of_range = Err(PlanRefusal::TimeboxOutOfRange { secs_max: 60 });
    for (pack, max_cost, secs, expected) in [
        ("decision", "0.005", 1, Ok(1)),
        ("decision", "2", 60, Ok(60)),
        ("url", "0.5", 60, Ok(60)),
        ("ocr", "1", 60, Err(PlanRefusal::PackNotAllowed)),
        ("decision", "0.0049", 60, too_low.clone()),
        ("decision", "0", 60, too_low),
        ("decision", "2.0001", 60, above("2")),
        ("url", "0.5001", 60, above("0.5")),
        ("decision", "1", 0, out_of_range.clone()),
        ("decision", "1", -1, out_of_range.clone()),
        ("decision", "1", 61, out_of_range.clone()),
        ("decision", "1", i64::from(i32::MAX) + 2, out_of_range),
    ] {
        assert_eq!(plan.admits(pack, usd(max_cost), secs), expected, "{pack} {max_cost} {secs}");
    }

    let unlimited =
        Plan { allowed_packs: None, run_cost_max: UsdMicros::ZERO, timebox_secs_max: 3_600, ..plan };
    assert_eq!((unlimited.timebox_secs_default(), unlimited.reservation_max()), (120, usd("10000")));
    assert_eq!(unlimited.admits("ocr", usd("10000"), 3_600), Ok(3_600));
    assert_eq!(unlimited.admits("ocr", usd("10000.0001"), 3_600), above("10000"));
    let short = Plan { timebox_secs_max: 119, ..unlimited };
    assert_eq!(short.timebox_secs_default(), 119);
}
