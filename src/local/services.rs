//! The four services that DPP needs, together.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_sdk_sqs::types::QueueAttributeName;
use tokio::net::TcpListener;

use super::{
    child::Child,
    postgres::{Durability, Postgres},
    redis::Redis,
    s3::LocalS3,
    sqs::LocalSqs,
};

const REGION: &str = "us-east-1";
/// How often SQS may show a message before it gives up on it. The database counts attempts; this only
/// ends messages that nobody can read.
const RECEIVES_MAX: u32 = 20;

/// Where the programs of PostgreSQL and Redis are, if not in the usual places.
#[derive(Clone, Debug, Default)]
pub struct Binaries {
    /// The directory of `postgres` and `initdb`.
    pub postgres: Option<PathBuf>,
    /// The directory of `redis-server`.
    pub redis: Option<PathBuf>,
}

/// The four services, running.
pub struct Services {
    /// PostgreSQL.
    pub postgres: Postgres,
    /// Redis.
    pub redis: Redis,
    /// S3 and SQS.
    pub cloud: Cloud,
}

/// The local S3 and SQS, running, and the keys to them.
pub struct Cloud {
    sqs: LocalSqs,
    s3: LocalS3,
    access_key: String,
    secret_key: String,
}

/// The queues and the bucket of one deployment.
#[derive(Clone, Debug)]
pub struct Places {
    /// The queue of runs.
    pub queue_url: String,
    /// Its dead-letter queue.
    pub dlq_url: String,
    /// The bucket of results.
    pub bucket: String,
}

impl Services {
    /// Starts all four below `directory`.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub async fn start(
        directory: &Path,
        binaries: &Binaries,
        durability: Durability,
    ) -> anyhow::Result<Self> {
        let (for_postgres, for_redis) = (directory.join("postgres"), directory.join("redis"));
        let (postgres, redis) = tokio::try_join!(
            Postgres::start(&for_postgres, binaries.postgres.as_deref(), durability, None),
            Redis::start(&for_redis, binaries.redis.as_deref(), None),
        )?;
        Ok(Self { postgres, redis, cloud: Cloud::start(directory).await? })
    }

    /// The settings of a deployment on these services, as `NAME`, value.
    pub fn settings(&self, database: &str, key_space: u32, places: &Places) -> Vec<(&'static str, String)> {
        let mut settings = self.cloud.settings(places);
        settings.push(("DATABASE_URL", self.postgres.url(database)));
        settings.push(("REDIS_URL", self.redis.url(key_space)));
        settings
    }

    /// Its child processes.
    pub fn children(&self) -> [&Child; 2] {
        [&self.postgres.child, &self.redis.child]
    }

    /// Stops all four, and waits until they are gone.
    pub async fn stop(self) {
        tokio::join!(self.postgres.child.stop(), self.redis.child.stop());
        drop(self.cloud);
    }
}

impl Cloud {
    /// Starts both; S3 keeps its objects below `directory`.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub async fn start(directory: &Path) -> anyhow::Result<Self> {
        // Good for this process's life and this machine only.
        let (access_key, secret_key) = ("dpp-local".to_owned(), uuid::Uuid::new_v4().simple().to_string());
        let sqs = LocalSqs::start(TcpListener::bind(("127.0.0.1", 0)).await?).await?;
        let s3 = LocalS3::start(
            TcpListener::bind(("127.0.0.1", 0)).await?,
            &directory.join("s3"),
            &access_key,
            &secret_key,
        )
        .await?;
        Ok(Self { sqs, s3, access_key, secret_key })
    }

    /// How the AWS SDK reaches the local S3 and SQS.
    pub fn aws(&self) -> SdkConfig {
        let credentials = Credentials::new(&self.access_key, &self.secret_key, None, None, "dpp-local");
        SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(REGION))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .http_client(crate::role::parts::http_client())
            .sleep_impl(aws_smithy_async::rt::sleep::SharedAsyncSleep::new(
                aws_smithy_async::rt::sleep::TokioSleep::new(),
            ))
            .time_source(aws_smithy_async::time::SystemTimeSource::new())
            .build()
    }

    /// Makes the queues and the bucket named after `name`, unless they are there.
    ///
    /// # Errors
    /// When one cannot be made.
    pub async fn places(&self, name: &str, visibility_secs: u64) -> anyhow::Result<Places> {
        let aws = self.aws();
        let sqs = aws_sdk_sqs::Client::from_conf(
            aws_sdk_sqs::config::Builder::from(&aws).endpoint_url(self.sqs.endpoint()).build(),
        );
        let dlq = sqs
            .create_queue()
            .queue_name(format!("{name}-dlq"))
            .send()
            .await
            .context("cannot make a queue")?;
        let dlq_url = dlq.queue_url.unwrap_or_default();
        let redrive = serde_json::json!({
            "deadLetterTargetArn": format!("arn:aws:sqs:{REGION}:000000000000:{name}-dlq"),
            "maxReceiveCount": RECEIVES_MAX,
        });
        let queue = sqs
            .create_queue()
            .queue_name(name)
            .attributes(QueueAttributeName::VisibilityTimeout, visibility_secs.to_string())
            .attributes(QueueAttributeName::RedrivePolicy, redrive.to_string())
            .send()
            .await
            .context("cannot make a queue")?;
        let s3 = aws_sdk_s3::Client::from_conf(
            aws_sdk_s3::config::Builder::from(&aws)
                .endpoint_url(self.s3.endpoint())
                .force_path_style(true)
                .build(),
        );
        if s3.head_bucket().bucket(name).send().await.is_err() {
            s3.create_bucket().bucket(name).send().await.context("cannot make the bucket")?;
        }
        Ok(Places { queue_url: queue.queue_url.unwrap_or_default(), dlq_url, bucket: name.to_owned() })
    }

    /// The settings of a deployment on these two, as `NAME`, value.
    pub fn settings(&self, places: &Places) -> Vec<(&'static str, String)> {
        vec![
            ("DPP_ENV", "dev".to_owned()),
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_ACCESS_KEY_ID", self.access_key.clone()),
            ("AWS_SECRET_ACCESS_KEY", self.secret_key.clone()),
            ("SQS_ENDPOINT_URL", self.sqs.endpoint()),
            ("S3_ENDPOINT_URL", self.s3.endpoint()),
            ("SQS_QUEUE_URL", places.queue_url.clone()),
            ("SQS_DLQ_URL", places.dlq_url.clone()),
            ("S3_RESULT_BUCKET", places.bucket.clone()),
            ("URL_ALLOW_LOOPBACK", "true".to_owned()),
            // Several roles on one machine cannot share a port.
            ("DPP_OPS_ADDR", "127.0.0.1:0".to_owned()),
        ]
    }
}
