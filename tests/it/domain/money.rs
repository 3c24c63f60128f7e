//! Amounts, prices and fees.

use dpp::domain::{
    money::{BadAmount, UsdMicros},
    price::{Meter, RESERVATION_MAX, RESERVATION_MIN, minimum_fee},
};
use proptest::prelude::*;

fn amounts() -> impl Strategy<Value = UsdMicros> {
    prop_oneof![
        0..=UsdMicros::MAX.get(),
        Just(0),
        Just(1),
        Just(UsdMicros::MAX.get()),
        (0..=UsdMicros::MAX.get() / 100).prop_map(|grains| grains * 100),
    ]
    .prop_map(|micros| UsdMicros::new(micros).unwrap())
}

proptest! {
    #[test]
    fn what_four_decimals_show_reads_back(amount in amounts()) {
        let text = amount.rounded_up().to_string();
        prop_assert_eq!(text.split_once('.').unwrap().1.len(), 4);
        prop_assert_eq!(text.parse::<UsdMicros>().unwrap(), amount.rounded_up());
    }

    #[test]
    fn nothing_is_rounded_down_and_less_than_a_grain_is_added(amount in amounts()) {
        let up = amount.rounded_up();
        prop_assert!(up.get() % 100 == 0 && up >= amount && up.get() - amount.get() < 100);
        prop_assert_eq!(amount.is_whole_grain(), amount.get() % 100 == 0);
        prop_assert_eq!(amount.is_zero(), amount.get() == 0);
    }

    #[test]
    fn sums_and_differences_are_exact_or_refused(a in amounts(), b in amounts()) {
        match a.checked_add(b) {
            Some(sum) => {
                prop_assert_eq!(sum.get(), a.get() + b.get());
                prop_assert!(sum <= UsdMicros::MAX, "an amount above the bound");
            }
            None => prop_assert!(a.get() + b.get() > UsdMicros::MAX.get()),
        }
        match a.checked_sub(b) {
            Some(difference) => prop_assert_eq!(difference.get(), a.get() - b.get()),
            None => prop_assert!(a < b),
        }
    }

    #[test]
    fn the_minimum_fee_is_within_its_bounds(micros in RESERVATION_MIN.get()..=RESERVATION_MAX.get()) {
        let reserved = UsdMicros::new(micros / 100 * 100).unwrap();
        let fee = minimum_fee(reserved);
        prop_assert!(fee.is_whole_grain() && fee <= reserved && fee.get() >= 5_000 && fee.get() <= 100_000);
        let two_percent = reserved.get() / 50 / 100 * 100;
        prop_assert_eq!(fee.get(), two_percent.clamp(5_000, 100_000).min(reserved.get()));
    }

    #[test]
    fn the_meter_never_passes_its_cap_and_refuses_whole_charges(
        cap in amounts(), charges in prop::collection::vec((amounts(), 0_u64..1_000), 0..20)
    ) {
        let meter = Meter::new(cap);
        for (price, count) in charges {
            let before = meter.used();
            let sum = i128::from(before.get()) + i128::from(price.get()) * i128::from(count);
            let sum = (sum + 99) / 100 * 100;
            let fits = sum <= i128::from(cap.get());
            prop_assert_eq!(meter.charge(price, count).is_ok(), fits);
            prop_assert_eq!(i128::from(meter.used().get()), if fits { sum } else { before.get().into() });
        }
    }
}

#[test]
fn texts_that_are_no_amount_are_refused() {
    let malformed = [
        "", ".", "1.", ".5", "1.23456", "-1", "+1", "1e3", "NaN", "inf", " 1", "1 ", "1,5", "0x10", "1_000",
        "１", "1.0.0", "--", "1.+5", "null",
    ];
    for text in malformed {
        assert_eq!(text.parse::<UsdMicros>(), Err(BadAmount::Malformed), "{text:?}");
    }
    for text in ["1000000000.0001", "1000000001", "99999999999999999999999999"] {
        assert_eq!(text.parse::<UsdMicros>(), Err(BadAmount::OutOfRange), "{text:?}");
    }
    for (text, micros) in [
        ("0", 0),
        ("5", 5_000_000),
        ("5.0", 5_000_000),
        ("0.0001", 100),
        ("007.5", 7_500_000),
        ("1000000000", UsdMicros::MAX.get()),
    ] {
        assert_eq!(text.parse::<UsdMicros>().map(UsdMicros::get), Ok(micros), "{text:?}");
    }
}

#[test]
fn the_fee_is_what_the_contract_says_at_its_corners() {
    let fee = |dollars: &str| minimum_fee(dollars.parse().unwrap()).to_string();
    for (reserved, expected) in [
        ("0.0050", "0.0050"),
        ("0.2499", "0.0050"),
        ("0.2550", "0.0051"),
        ("1", "0.0200"),
        ("1.0049", "0.0200"),
        ("5", "0.1000"),
        ("10000", "0.1000"),
    ] {
        assert_eq!(fee(reserved), expected, "{reserved}");
    }
}
