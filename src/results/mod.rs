//! S3: the results. The only module that knows it.
//!
//! An object's key names the run *and* the attempt, and every put is conditional, so no upload ever
//! replaces another. That is defence in depth: a store that ignores the condition cannot hurt, since
//! only the winner of a claim puts, and only under its own attempt's key.

use std::time::Duration;

use anyhow::anyhow;
use aws_config::SdkConfig;
use aws_sdk_s3::{
    Client,
    config::{retry::RetryConfig, timeout::TimeoutConfig},
    error::{ProvideErrorMetadata, SdkError},
    presigning::PresigningConfig,
    primitives::ByteStream,
    types::{Delete, ObjectIdentifier},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};

use crate::{
    domain::{
        id::{LeaseToken, RunId, TenantId},
        receipt::Receipt,
        reconcile::Sight,
        run::Claimed,
    },
    telemetry,
};

const CONNECT_MAX: Duration = Duration::from_secs(2);
const ATTEMPT_MAX: Duration = Duration::from_secs(10);
/// The longest that a put may take with all its retries. Far below the age at which a claim counts
/// as stale, so that a reconciler never judges a put that is still under way.
pub const CALL_MAX: Duration = Duration::from_secs(30);
const OBJECTS_LISTED_MAX: i32 = 1_000;

/// A failed call to S3. A put may have been applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// S3 could not be reached, did not answer in time, or refused.
    #[error("the result store is unavailable")]
    Unavailable(#[source] anyhow::Error),
    /// Another object lies under the key.
    #[error("another object lies under {key}")]
    Occupied {
        /// The key.
        key: String,
    },
}

/// The bucket of results.
#[derive(Clone)]
pub struct Results {
    client: Client,
    bucket: String,
}

/// Where the result of one attempt lies.
pub fn result_key(tenant_id: TenantId, run_id: RunId, attempt: i32, token: LeaseToken) -> String {
    format!("{}{attempt}-{token}/pack_envelope.json", run_prefix(tenant_id, run_id))
}

fn run_prefix(tenant_id: TenantId, run_id: RunId) -> String {
    format!("{tenant_id}/{run_id}/")
}

fn failed<E, R>(error: SdkError<E, R>) -> Error
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    R: std::fmt::Debug + Send + Sync + 'static,
{
    Error::Unavailable(anyhow!("{}", said(&error)))
}

/// What S3 said, for people.
fn said<E, R>(error: &SdkError<E, R>) -> String
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    R: std::fmt::Debug + Send + Sync + 'static,
{
    telemetry::aws_error(error, error.code(), error.message())
}

impl Results {
    /// The bucket `bucket`; connects when first used.
    pub fn new(aws: &SdkConfig, endpoint: Option<&str>, bucket: String) -> Self {
        let mut config = aws_sdk_s3::config::Builder::from(aws)
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT_MAX)
                    .operation_attempt_timeout(ATTEMPT_MAX)
                    .operation_timeout(CALL_MAX)
                    .build(),
            )
            .retry_config(RetryConfig::standard().with_max_attempts(3));
        if let Some(endpoint) = endpoint {
            config = config.endpoint_url(endpoint).force_path_style(true);
        }
        Self { client: Client::from_conf(config.build()), bucket }
    }

    /// Puts the winner's result and its receipt. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn put(&self, claimed: &Claimed, bytes: Vec<u8>) -> Result<(), Error> {
        let claim = claimed.claim();
        let receipt = Receipt {
            run_id: claimed.run_id(),
            tenant_id: claimed.tenant_id(),
            cost: claim.cost,
            sha256: claim.sha256.clone(),
        };
        let put = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(&claim.result_key)
            .if_none_match("*")
            .content_type("application/json")
            .checksum_sha256(BASE64_STANDARD.encode(sha256_bytes(&claim.sha256)))
            .set_metadata(Some(receipt.to_metadata()))
            .body(ByteStream::from(bytes))
            .send()
            .await;
        match put {
            Ok(_) => Ok(()),
            // An earlier attempt of this very put may have arrived although its answer did not.
            Err(error) if status(&error) == Some(412) => match self.look(&claim.result_key).await {
                Sight::Present { receipt: Ok(there) } if there == receipt => Ok(()),
                Sight::Present { .. } => Err(Error::Occupied { key: claim.result_key.clone() }),
                Sight::Absent | Sight::Unknown => Err(failed(error)),
            },
            Err(error) => Err(failed(error)),
        }
    }

    /// Looks for an object. [`Sight::Absent`] is said only when S3 listed the place successfully and
    /// nothing was there: a 404 to a HEAD also comes from a missing bucket.
    pub async fn look(&self, key: &str) -> Sight {
        let head = self.client.head_object().bucket(&self.bucket).key(key).send().await;
        match head {
            Ok(object) => {
                Sight::Present { receipt: Receipt::from_metadata(&object.metadata.unwrap_or_default()) }
            }
            Err(error) if status(&error) == Some(404) => {
                let listed =
                    self.client.list_objects_v2().bucket(&self.bucket).prefix(key).max_keys(1).send().await;
                match listed {
                    Ok(listing) if listing.contents().is_empty() => Sight::Absent,
                    Ok(_) | Err(_) => Sight::Unknown,
                }
            }
            Err(error) => {
                tracing::warn!(key, error = said(&error), "cannot look for a result");
                Sight::Unknown
            }
        }
    }

    /// A URL that lets its bearer download one object for `ttl`, in whole seconds and at least one.
    ///
    /// # Errors
    /// [`Error`] when no credentials can be had.
    pub async fn presign(&self, key: &str, ttl: Duration) -> Result<String, Error> {
        let secs = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0)).max(1);
        let config = PresigningConfig::expires_in(Duration::from_secs(secs))
            .map_err(|error| Error::Unavailable(error.into()))?;
        let request =
            self.client.get_object().bucket(&self.bucket).key(key).presigned(config).await.map_err(failed)?;
        Ok(request.uri().to_owned())
    }

    /// An object's bytes and receipt, or `None` where there is none. For audits.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn fetch(
        &self,
        key: &str,
    ) -> Result<Option<(Vec<u8>, std::collections::HashMap<String, String>)>, Error> {
        match self.client.get_object().bucket(&self.bucket).key(key).send().await {
            Ok(object) => {
                let metadata = object.metadata.unwrap_or_default();
                let bytes = object.body.collect().await.map_err(|error| Error::Unavailable(error.into()))?;
                Ok(Some((bytes.to_vec(), metadata)))
            }
            Err(error) if error.code() == Some("NoSuchKey") => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Deletes every object of a run, of lost attempts too.
    ///
    /// # Errors
    /// [`Error`]; some may be gone.
    pub async fn purge(&self, tenant_id: TenantId, run_id: RunId) -> Result<(), Error> {
        let listing = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(run_prefix(tenant_id, run_id))
            .max_keys(OBJECTS_LISTED_MAX)
            .send()
            .await
            .map_err(failed)?;
        let keys: Result<Vec<_>, _> = listing
            .contents()
            .iter()
            .filter_map(|object| object.key())
            .map(|key| ObjectIdentifier::builder().key(key).build())
            .collect();
        let keys = keys.map_err(|error| Error::Unavailable(error.into()))?;
        if keys.is_empty() {
            return Ok(());
        }
        let delete = Delete::builder()
            .set_objects(Some(keys))
            .build()
            .map_err(|error| Error::Unavailable(error.into()))?;
        let output =
            self.client.delete_objects().bucket(&self.bucket).delete(delete).send().await.map_err(failed)?;
        match output.errors().first() {
            None => Ok(()),
            Some(error) => Err(Error::Unavailable(anyhow!("{}", error.message().unwrap_or("not deleted")))),
        }
    }

    /// Whether the bucket answers.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn ping(&self) -> Result<(), Error> {
        let limit = TimeoutConfig::builder().operation_timeout(Duration::from_millis(1_500)).build();
        self.client
            .head_bucket()
            .bucket(&self.bucket)
            .customize()
            .config_override(aws_sdk_s3::config::Builder::new().timeout_config(limit))
            .send()
            .await
            .map(drop)
            .map_err(failed)
    }
}

fn status<E>(error: &SdkError<E, aws_sdk_s3::config::http::HttpResponse>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

/// The bytes of a hex digest; a malformed one gives other bytes, which S3 then refuses.
fn sha256_bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).filter_map(|at| u8::from_str_radix(hex.get(at * 2..at * 2 + 2)?, 16).ok()).collect()
}
