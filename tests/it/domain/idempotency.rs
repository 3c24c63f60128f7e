//! Which requests are the same request.

use dpp::{
    domain::idempotency::{IdempotencyKey, PayloadHash, canonical_json},
    wire::json,
};
use proptest::prelude::*;
use serde_json::{Map, Value};

fn documents() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        prop::num::f64::NORMAL.prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map("\\PC{0,6}", inner, 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

proptest! {
    #[test]
    fn the_order_of_members_and_white_space_change_nothing(document in documents()) {
        let pretty = serde_json::to_string_pretty(&document).unwrap();
        let read = json::parse(pretty.as_bytes()).unwrap();
        prop_assert_eq!(PayloadHash::of(&read), PayloadHash::of(&document));
    }

    #[test]
    fn canonical_json_says_the_same_thing(document in documents()) {
        let again: Value = serde_json::from_str(&canonical_json(&document)).unwrap();
        prop_assert_eq!(canonical_json(&again), canonical_json(&document));
    }

    #[test]
    fn other_documents_hash_otherwise(a in documents(), b in documents()) {
        prop_assume!(canonical_json(&a) != canonical_json(&b));
        prop_assert_ne!(PayloadHash::of(&a), PayloadHash::of(&b));
    }
}

#[test]
fn canonical_json_is_that_of_rfc_8785() {
    let read = |text: &str| canonical_json(&json::parse(text.as_bytes()).unwrap());
    // RFC 8785 §3.2.3: sorted by UTF-16 code units, where the emoji comes before U+FB33.
    let text = r#"{"\u20ac":1,"\r":2,"\ufb33":3,"1":4,"\ud83d\ude00":5,"\u0080":6,"\u00f6":7}"#;
    assert_eq!(read(text), "{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"ö\":7,\"€\":1,\"😀\":5,\"\u{fb33}\":3}");
    assert_eq!(read("[1.0, 1, -0.0, 1.50, 100e-2]"), "[1,1,0,1.5,1]");
    // Where the RFC would lose digits, ours keeps them.
    assert_ne!(read("9007199254740993"), read("9007199254740992"));
}

#[test]
fn a_quoted_key_is_its_content() {
    let key = |header: &str| IdempotencyKey::from_header(header).map(|key| key.as_str().to_owned()).ok();
    assert_eq!(key("abc").as_deref(), Some("abc"));
    assert_eq!(key("\"abc\"").as_deref(), Some("abc"));
    assert_eq!(key(r#""a\"b\\c""#).as_deref(), Some(r#"a"b\c"#));
    assert_eq!(key("a\"b").as_deref(), Some("a\"b"));
    let long = "k".repeat(255);
    assert_eq!(key(&long).as_deref(), Some(long.as_str()));
    for wrong in ["", "\"\"", "\"abc", "\"a\\x\"", "\"a\"b", "a b", "ä", "\u{7f}", &"k".repeat(256)] {
        assert_eq!(key(wrong), None, "{wrong:?}");
    }
}

#[test]
fn json_from_outside_is_bounded_and_unambiguous() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(json::parse(nested(64).as_bytes()).is_ok());
    assert!(matches!(json::parse(nested(65).as_bytes()), Err(json::Error::TooDeep)));
    assert!(matches!(json::parse("[".repeat(200_000).as_bytes()), Err(json::Error::TooDeep)));
    let brackets_in_text = format!("{{\"a\":\"{}\"}}", "[\\\"{".repeat(100));
    assert!(json::parse(brackets_in_text.as_bytes()).is_ok());
    for wrong in [
        "{\"a\":1,\"a\":2}",
        "{\"a\":{\"b\":1,\"b\":1}}",
        "1e999",
        "\"\\ud800\"",
        "{} {}",
        "",
        "nul",
        "\u{feff}{}",
    ] {
        assert!(matches!(json::parse(wrong.as_bytes()), Err(json::Error::Malformed(_))), "{wrong:?}");
    }
    assert!(json::parse(b"\"\xff\"").is_err());
}
