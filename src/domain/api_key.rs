//! API keys: `dpp_live_<32 base62>_<8 hex checksum>`.
//!
//! The checksum (the first 8 hex digits of SHA-256 over everything before it) lets a mistyped key be
//! refused without a query, and secret scanners tell a real key from a lookalike. Only the SHA-256 of
//! the whole key is ever stored.

use std::str::FromStr;

use rand::RngExt as _;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};

const PREFIX: &str = "dpp_live_";
const RANDOM_CHARS: usize = 32;
const CHECKSUM_CHARS: usize = 8;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A key that is well formed; whether it opens anything, the store knows.
#[derive(Clone, Debug)]
pub struct ApiKey(SecretString);

/// The SHA-256 of a key: what is stored and looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyDigest(pub [u8; 32]);

/// The text is not an API key.
#[derive(Debug, thiserror::Error)]
#[error("an API key is dpp_live_, 32 letters or digits, an underscore and an 8-digit checksum")]
pub struct BadApiKey;

impl ApiKey {
    /// A new key from the operating system's randomness (190 bits).
    pub fn generate() -> Self {
        let mut rng = rand::rng();
        let mut text = String::from(PREFIX);
        text.extend((0..RANDOM_CHARS).map(|_| char::from(BASE62[rng.random_range(0..BASE62.len())])));
        let checksum = checksum(&text);
        Self(SecretString::from(format!("{text}_{checksum}")))
    }

    /// What is stored of it.
    pub fn digest(&self) -> KeyDigest {
        KeyDigest(Sha256::digest(self.0.expose_secret().as_bytes()).into())
    }

    /// The secret itself, for the one time that it is shown.
    pub fn reveal(&self) -> &str {
        self.0.expose_secret()
    }
}

impl FromStr for ApiKey {
    type Err = BadApiKey;

    fn from_str(text: &str) -> Result<Self, BadApiKey> {
        let (body, sum) = text.rsplit_once('_').ok_or(BadApiKey)?;
        let random = body.strip_prefix(PREFIX).ok_or(BadApiKey)?;
        let sound = random.len() == RANDOM_CHARS
            && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
            && sum == checksum(body);
        if sound { Ok(Self(SecretString::from(text))) } else { Err(BadApiKey) }
    }
}

fn checksum(body: &str) -> String {
    let mut text = hex(&Sha256::digest(body.as_bytes()));
    text.truncate(CHECKSUM_CHARS);
    text
}

/// Lower-case hex digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
