//! Idempotency: which requests are the same request.

use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// A client's name for one submit: 1 to 255 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(String);

/// The header's value is not an idempotency key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an Idempotency-Key is 1 to 255 visible ASCII characters, bare or as a quoted string")]
pub struct BadIdempotencyKey;

const KEY_CHARS_MAX: usize = 255;

impl IdempotencyKey {
    /// Reads a header value. A quoted structured-field string (RFC 8941 §3.3.3) is the same key as
    /// its content, as the IETF Idempotency-Key draft writes it.
    ///
    /// # Errors
    /// [`BadIdempotencyKey`]
    pub fn from_header(value: &str) -> Result<Self, BadIdempotencyKey> {
        let value = value.trim_matches([' ', '\t']);
        let key = match value.strip_prefix('"') {
            Some(rest) => unquote(rest).ok_or(BadIdempotencyKey)?,
            None => value.to_owned(),
        };
        let visible = key.bytes().all(|byte| byte.is_ascii_graphic());
        if (1..=KEY_CHARS_MAX).contains(&key.len()) && visible {
            Ok(Self(key))
        } else {
            Err(BadIdempotencyKey)
        }
    }

    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A short fixed-size name for the key, for places that should not hold clients' text.
    pub fn fingerprint(&self) -> String {
        key_fingerprint(&self.0)
    }
}

/// The fingerprint of a stored key: 32 hex digits of its SHA-256.
pub fn key_fingerprint(key: &str) -> String {
    super::api_key::hex(&Sha256::digest(key.as_bytes())[..16])
}

fn unquote(rest: &str) -> Option<String> {
    let mut key = String::new();
    let mut chars = rest.chars();
    loop {
        match chars.next()? {
            '"' => return chars.next().is_none().then_some(key),
            '\\' => match chars.next()? {
                escaped @ ('"' | '\\') => key.push(escaped),
                _ => return None,
            },
            plain => key.push(plain),
        }
    }
}

/// The SHA-256 of a request's canonical JSON: equal exactly when the JSON is, whatever its key order
/// and white space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadHash(pub [u8; 32]);

impl PayloadHash {
    /// The hash of `payload`.
    pub fn of(payload: &Value) -> Self {
        Self(Sha256::digest(canonical_json(payload).as_bytes()).into())
    }

    /// As lower-case hex.
    pub fn to_hex(self) -> String {
        super::api_key::hex(&self.0)
    }
}

/// Canonical JSON after RFC 8785: members sorted by UTF-16 code units, no white space, shortest
/// strings, and `1.0` written as `1`. It differs from the RFC where that loses information: an
/// integer beyond 2^53 keeps all of its digits, so that two different requests never hash alike.
pub fn canonical_json(value: &Value) -> String {
    let mut text = String::new();
    write_canonical(value, &mut text);
    text
}

fn write_canonical(value: &Value, text: &mut String) {
    match value {
        Value::Number(number) => text.push_str(&canonical_number(number)),
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write_canonical(item, text);
            }
            text.push(']');
        }
        Value::Object(members) => {
            let mut names: Vec<_> = members.keys().collect();
            names.sort_by(|a, b| a.encode_utf16().cmp(b.encode_utf16()));
            text.push('{');
            for (index, name) in names.into_iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                text.push_str(&Value::from(name.as_str()).to_string());
                text.push(':');
                write_canonical(&members[name], text);
            }
            text.push('}');
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}

fn canonical_number(number: &serde_json::Number) -> String {
    /// Every whole number below this is exact as a double and prints without an exponent.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match number.as_f64() {
        Some(float) if number.is_f64() && float.trunc() == float && float.abs() < EXACT => {
            #[expect(clippy::cast_possible_truncation, reason = "a whole number below 2^53 fits")]
            let whole = float as i64;
            whole.to_string()
        }
        _ => number.to_string(),
    }
}
