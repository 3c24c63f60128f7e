//! The parts of a process, built from its settings in one order. Nothing connects before it is used.

use std::sync::Arc;

use aws_config::{BehaviorVersion, SdkConfig};
use aws_smithy_http_client::tls;
use aws_smithy_runtime_api::client::http::SharedHttpClient;

use crate::{
    budget::Budget,
    config::Settings,
    flow::{Ctx, crash::Crash, wait::Waits},
    pack::{self, Pack, Registry, url::Access},
    queue::Queue,
    results::Results,
    store::{SchemaState, Store, schema_state},
};

/// Everything that flows act on.
///
/// # Errors
/// When a setting is missing.
pub fn context(settings: &Settings, aws: &SdkConfig) -> anyhow::Result<Ctx> {
    let (database_url, connections_max) = settings.database()?;
    let (redis_url, redis_password, redis_max) = settings.redis()?;
    let (sqs_endpoint, queue_url, dlq_url) = settings.queue()?;
    let (s3_endpoint, bucket) = settings.results()?;
    Ok(Ctx {
        store: Store::new(&database_url, connections_max)?,
        budget: Budget::new(&redis_url, redis_password.as_ref(), redis_max)?,
        queue: Queue::new(aws, sqs_endpoint.as_deref(), queue_url, dlq_url),
        results: Results::new(aws, s3_endpoint.as_deref(), bucket),
        packs: Registry::new(packs(settings)),
        pace: settings.pace(),
        waits: Waits::default(),
        crash: crash()?,
    })
}

/// The one list of packs: what the API sells is what the worker works on.
pub fn packs(settings: &Settings) -> Vec<Box<dyn Pack>> {
    let (allow_loopback, extra_ports) = settings.url_pack();
    let access = Access { allow_loopback, extra_ports };
    vec![
        Box::new(pack::decision::DecisionPack::new()),
        Box::new(pack::url::UrlPack::new(access, Arc::new(pack::url::SystemDns))),
    ]
}

/// Region and credentials from the usual AWS chain.
pub async fn aws() -> SdkConfig {
    aws_config::defaults(BehaviorVersion::latest()).http_client(http_client()).load().await
}

/// How the AWS SDK speaks HTTP: over rustls with ring.
pub fn http_client() -> SharedHttpClient {
    aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
        .build_https()
}

/// Refuses to go on with a database that this build does not know.
///
/// # Errors
/// When the schema is not current, with what to do.
pub async fn require_schema(settings: &Settings) -> anyhow::Result<()> {
    let (database_url, _) = settings.database()?;
    match schema_state(&database_url).await? {
        SchemaState::Current => Ok(()),
        SchemaState::Pending(names) => {
            anyhow::bail!("the database lacks migrations ({}): run `dpp migrate`", names.join(", "))
        }
        SchemaState::Ahead(names) => anyhow::bail!(
            "the database has migrations that this build does not know ({}): deploy a newer build",
            names.join(", ")
        ),
        SchemaState::Drifted(lines) => {
            anyhow::bail!("the database's schema was changed by hand:\n{}", lines.join("\n"))
        }
    }
}

/// A flow's death for tests of real processes; never in release builds.
fn crash() -> anyhow::Result<Crash> {
    let crash = Crash::default();
    #[cfg(debug_assertions)]
    {
        #[expect(clippy::disallowed_methods, reason = "not a setting: exists in test builds alone")]
        if let Ok(name) = std::env::var("DPP_CRASH_AT") {
            anyhow::ensure!(
                crash.arm_by_name(&name),
                "DPP_CRASH_AT is {name:?}; it would be `before` or `after` and the name of a CrashPoint"
            );
        }
    }
    Ok(crash)
}
