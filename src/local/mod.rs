//! S3 and SQS on this machine, for `dpp dev` and for the tests: real servers on loopback that the
//! same AWS SDK speaks to over the same wire as in production, so that no code path exists for
//! development alone.
//!
//! They promise what the platform relies on, and `tests/it/conformance` holds them to it next to an
//! independent server. What they lack, each module says, and what is lacking is refused, never
//! quietly ignored. Neither is fit for anything but development: no TLS, no tenants, one machine.

pub mod child;
mod http;
pub mod postgres;
pub mod redis;
pub mod s3;
pub mod services;
pub mod sqs;

use md5::{Digest, Md5};

/// The lower-case hex MD5 that both services answer with; a checksum, no protection.
fn md5_hex(bytes: &[u8]) -> String {
    format!("{:032x}", u128::from_be_bytes(Md5::digest(bytes).into()))
}
