//! Cursors open for what they were sealed for, and say nothing.

use dpp::domain::cursor::CursorKey;
use proptest::prelude::*;

proptest! {
    #[test]
    fn a_cursor_opens_for_its_scope_and_key_alone(
        bytes in any::<[u8; 32]>(), scope in ".{0,40}", other in ".{0,40}", place in prop::collection::vec(any::<u8>(), 0..=32),
    ) {
        let key = CursorKey::new(bytes);
        let cursor = key.seal(&scope, &place);
        prop_assert_eq!(key.open(&scope, &cursor), Some(place.clone()));
        prop_assert_eq!(key.open(&other, &cursor).is_some(), scope == other);
        let mut another = bytes;
        another[0] ^= 1;
        prop_assert_eq!(CursorKey::new(another).open(&scope, &cursor), None);
        // Where the scope ends and the place begins is sealed too.
        if let Some((last, rest)) = scope.char_indices().last().map(|(at, _)| (&scope.as_bytes()[at..], &scope[..at])) {
            let moved = [last, &place].concat();
            prop_assert!(moved.len() > 32 || key.seal(rest, &moved)[..22] != cursor[..22]);
        }
    }

    #[test]
    fn no_text_that_was_not_sealed_opens(scope in ".{0,10}", text in "[A-Za-z0-9_-]{0,64}") {
        prop_assert_eq!(CursorKey::new([7; 32]).open(&scope, &text), None);
    }
}

/// Two pages apart, and nothing to read from it.
#[test]
fn the_place_cannot_be_read() {
    let key = CursorKey::new([7; 32]);
    let (one, two) =
        (key.seal("ledger", &1_000_i64.to_be_bytes()), key.seal("ledger", &1_001_i64.to_be_bytes()));
    assert_eq!((one.len(), one == key.seal("ledger", &1_000_i64.to_be_bytes())), (32, true));
    let alike = one.bytes().zip(two.bytes()).filter(|(a, b)| a == b).count();
    assert!(alike < 10, "{one} {two}");
}
