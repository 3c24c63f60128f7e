//! Probe: whether each thing that a role depends on answers, within a second or two.

use std::{future::Future, time::Duration};

use super::Ctx;

/// Below what a request waits for a flow.
const PROBE_MAX: Duration = Duration::from_millis(1_500);

/// What each dependency answered: `Ok`, or why not in words fit for the outside.
#[derive(Clone, Debug)]
pub struct Probe {
    /// PostgreSQL.
    pub database: Result<(), &'static str>,
    /// Redis.
    pub redis: Result<(), &'static str>,
    /// S3.
    pub s3: Result<(), &'static str>,
    /// SQS.
    pub sqs: Result<(), &'static str>,
}

impl Probe {
    /// What is said of all of them where nobody has been heard from yet.
    pub const fn unheard() -> Self {
        let unheard = Err("it has not answered yet");
        Self { database: unheard, redis: unheard, s3: unheard, sqs: unheard }
    }

    /// Whether all of them answered.
    pub fn all_up(&self) -> bool {
        self.database.is_ok() && self.redis.is_ok() && self.s3.is_ok() && self.sqs.is_ok()
    }
}

/// Asks all of them at once.
pub async fn probe(cx: &Ctx) -> Probe {
    let (database, redis, s3, sqs) = tokio::join!(
        bounded("database", cx.store.ping()),
        bounded("redis", cx.budget.ping()),
        bounded("s3", cx.results.ping()),
        bounded("sqs", cx.queue.ping()),
    );
    Probe { database, redis, s3, sqs }
}

async fn bounded<E: Into<super::Error>>(
    service: &'static str,
    ping: impl Future<Output = Result<(), E>>,
) -> Result<(), &'static str> {
    match tokio::time::timeout(PROBE_MAX, ping).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            tracing::warn!(
                service,
                error = format!("{:#}", anyhow::Error::from(error.into())),
                "a dependency is down"
            );
            Err("it cannot be reached, or refuses")
        }
        Err(_) => {
            tracing::warn!(service, "a dependency does not answer in time");
            Err("it does not answer in time")
        }
    }
}
