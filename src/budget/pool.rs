//! Connections that know which server process they reached.

use std::time::Duration;

use anyhow::Context as _;
use deadpool::managed::{Metrics, RecycleError, RecycleResult};
use deadpool_redis::redis::{self, IntoConnectionInfo as _, RedisError, aio::MultiplexedConnection};
use secrecy::{ExposeSecret as _, SecretString};

const WAIT_MAX: Duration = Duration::from_millis(1_000);
const CONNECT_MAX: Duration = Duration::from_millis(1_000);

/// A connection and the identity of the process at its other end.
pub(super) struct Connection {
    pub(super) redis: MultiplexedConnection,
    /// `run_id` of `INFO server`: new with every start of a server.
    pub(super) server: String,
}

pub(super) type Pool = deadpool::managed::Pool<Manager>;

pub(super) struct Manager(deadpool_redis::Manager);

impl deadpool::managed::Manager for Manager {
    type Type = Connection;
    type Error = RedisError;

    async fn create(&self) -> Result<Connection, RedisError> {
        let mut redis = self.0.create().await?;
        let info: String = redis::cmd("INFO").arg("server").query_async(&mut redis).await?;
        let server = info
            .lines()
            .find_map(|line| line.strip_prefix("run_id:"))
            .map(|run_id| run_id.trim().to_owned())
            .ok_or_else(|| RedisError::from((redis::ErrorKind::Parse, "INFO server has no run_id")))?;
        Ok(Connection { redis, server })
    }

    /// Without a ping, which would double the round trips: a connection that fails is thrown away by
    /// whoever meets the failure.
    async fn recycle(&self, _: &mut Connection, metrics: &Metrics) -> RecycleResult<RedisError> {
        // Behind a proxy a connection can outlive the server behind it; none lives for long.
        if metrics.created.elapsed() > Duration::from_secs(300) {
            return Err(RecycleError::message("old"));
        }
        Ok(())
    }
}

pub(super) fn build(
    url: &SecretString,
    password: Option<&SecretString>,
    connections_max: usize,
) -> anyhow::Result<Pool> {
    // The cause would name the URL, and with it perhaps a password.
    let mut info = url
        .expose_secret()
        .into_connection_info()
        .ok()
        .context("REDIS_URL is not a Redis URL such as redis://127.0.0.1:6379/0")?;
    if let Some(password) = password {
        let settings = info.redis_settings().clone().set_password(password.expose_secret());
        info = info.set_redis_settings(settings);
    }
    let manager = Manager(deadpool_redis::Manager::new(info).context("cannot use REDIS_URL")?);
    Pool::builder(manager)
        .max_size(connections_max)
        .wait_timeout(Some(WAIT_MAX))
        .create_timeout(Some(CONNECT_MAX))
        .recycle_timeout(Some(CONNECT_MAX))
        .runtime(deadpool::Runtime::Tokio1)
        .build()
        .context("cannot build the Redis pool")
}
