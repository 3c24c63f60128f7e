//! Money, ids, keys, hashing, verdicts: pure, as properties and exhaustive tables.

mod cursor;
mod idempotency;
mod money;
mod plan;
mod reconcile;

use dpp::domain::{
    api_key::ApiKey,
    id::{RunId, TraceId},
};
use proptest::prelude::*;

proptest! {
    #[test]
    fn a_key_survives_its_text_and_no_slip_of_one_character_does(at in 9_usize..49, to in prop::char::range('!', '~')) {
        let key = ApiKey::generate();
        let text = key.reveal().to_owned();
        prop_assert_eq!(text.parse::<ApiKey>().unwrap().digest(), key.digest());
        let mut slip: Vec<char> = text.chars().collect();
        prop_assume!(slip[at] != to);
        slip[at] = to;
        prop_assert!(slip.into_iter().collect::<String>().parse::<ApiKey>().is_err());
    }

    #[test]
    fn no_text_at_all_makes_a_parser_panic(text in "\\PC*") {
        let _ = text.parse::<ApiKey>();
        let _ = text.parse::<RunId>();
        let _ = text.parse::<TraceId>();
        let _ = TraceId::from_traceparent(&text);
        let _ = dpp::domain::idempotency::IdempotencyKey::from_header(&text);
        let _ = dpp::wire::json::parse(text.as_bytes());
    }
}

#[test]
fn a_key_looks_as_the_contract_says_and_hides_itself() {
    let key = ApiKey::generate();
    let text = key.reveal();
    let (body, checksum) = text.rsplit_once('_').unwrap();
    assert_eq!((body.len(), checksum.len()), ("dpp_live_".len() + 32, 8));
    assert!(!format!("{key:?}").contains(text));
}

#[test]
fn a_traceparent_is_continued_only_when_it_is_sound() {
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let sound = [
        format!("00-{trace}-00f067aa0ba902b7-01"),
        format!("cc-{trace}-00f067aa0ba902b7-01-what-the-future-will-be-like"),
    ];
    for header in sound {
        assert_eq!(
            TraceId::from_traceparent(&header).map(|id| id.to_string()).as_deref(),
            Some(trace),
            "{header}"
        );
    }
    let unsound = [
        format!("ff-{trace}-00f067aa0ba902b7-01"),
        format!("00-{trace}-00f067aa0ba902b7-01-more"),
        format!("00-{trace}-0000000000000000-01"),
        format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
        format!("00-{}-00f067aa0ba902b7-01", trace.to_uppercase()),
        format!("00-{trace}-00f067aa0ba902b7"),
        String::new(),
    ];
    for header in unsound {
        assert!(TraceId::from_traceparent(&header).is_none(), "{header}");
    }
    let id: TraceId = trace.parse().unwrap();
    assert_eq!(TraceId::from_traceparent(&id.to_traceparent()), Some(id));
}
