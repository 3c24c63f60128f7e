//! Cursors: a place in a list, sealed for whoever was shown the list.
//!
//! A cursor opens only under the scope that it was sealed for: one list of one tenant with one filter. What
//! it holds cannot be read either, because a place may be the platform's own count. The seal is a MAC of
//! scope and place; the same MAC, as the seed of a mask, hides the place (the construction of SIV).

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

const SEAL_BYTES: usize = 16;
/// A mask is one MAC long.
const PLACE_BYTES_MAX: usize = 32;
const CURSOR_CHARS_MAX: usize = 64;

/// What all replicas seal cursors with.
#[derive(Clone)]
pub struct CursorKey([u8; 32]);

impl CursorKey {
    /// The key of these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Seals a place of at most 32 bytes.
    pub fn seal(&self, scope: &str, place: &[u8]) -> String {
        debug_assert!(place.len() <= PLACE_BYTES_MAX, "a mask covers the place");
        let seal = self.seal_of(scope, place).finalize().into_bytes();
        let seal = &seal[..SEAL_BYTES];
        let mut cursor = seal.to_vec();
        cursor.extend(self.masked(seal, place));
        BASE64_URL_SAFE_NO_PAD.encode(cursor)
    }

    /// The place in a cursor, or `None` if it was not sealed by this key for this scope.
    pub fn open(&self, scope: &str, cursor: &str) -> Option<Vec<u8>> {
        if cursor.len() > CURSOR_CHARS_MAX {
            return None;
        }
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (seal, masked) = bytes.split_at_checked(SEAL_BYTES)?;
        let place = self.masked(seal, masked);
        // In constant time.
        self.seal_of(scope, &place).verify_truncated_left(seal).ok()?;
        Some(place)
    }

    fn seal_of(&self, scope: &str, place: &[u8]) -> Hmac<Sha256> {
        // The length keeps a scope's end apart from the place's beginning.
        let length = u64::try_from(scope.len()).unwrap_or(u64::MAX);
        self.mac("seal").chain_update(length.to_be_bytes()).chain_update(scope).chain_update(place)
    }

    fn masked(&self, seal: &[u8], place: &[u8]) -> Vec<u8> {
        let mask = self.mac("mask").chain_update(seal).finalize().into_bytes();
        place.iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect()
    }

    fn mac(&self, purpose: &str) -> Hmac<Sha256> {
        let mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.chain_update(purpose)
    }
}
