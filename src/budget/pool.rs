//! Connections that know which server process they reached.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use deadpool::managed::{Metrics, RecycleResult};
use deadpool_redis::redis::{
    self, AsyncConnectionConfig, ConnectionInfo, IntoConnectionInfo as _, RedisError,
    aio::MultiplexedConnection,
};
use secrecy::{ExposeSecret as _, SecretString};

const WAIT_MAX: Duration = Duration::from_millis(1_000);
const CONNECT_MAX: Duration = Duration::from_millis(1_000);

/// How long a connection's knowledge of its server is trusted.
const IDENTITY_TTL: Duration = Duration::from_secs(1);
/// The longest that any one call may take; each has a limit of its own below this.
const RESPONSE_MAX: Duration = Duration::from_secs(6);

/// A connection and the identity of what is at its other end.
pub(super) struct Connection {
    pub(super) redis: MultiplexedConnection,
    /// The process (`run_id`, new with every start) and the history of its data (`master_replid`, new
    /// with every promotion): a server that was demoted, missed writes and was promoted again is the
    /// same process with another history.
    pub(super) server: String,
    identified_at: Instant,
}

pub(super) type Pool = deadpool::managed::Pool<Manager>;

pub(super) struct Manager(deadpool_redis::Manager);

impl deadpool::managed::Manager for Manager {
    type Type = Connection;
    type Error = RedisError;

    async fn create(&self) -> Result<Connection, RedisError> {
        let mut redis = self.0.create().await?;
        let server = identify(&mut redis).await?;
        Ok(Connection { redis, server, identified_at: Instant::now() })
    }

    /// Without a ping, which would double the round trips: a connection that fails is thrown away by
    /// whoever meets the failure.
    async fn recycle(&self, connection: &mut Connection, _: &Metrics) -> RecycleResult<RedisError> {
        if connection.identified_at.elapsed() >= IDENTITY_TTL {
            connection.server = identify(&mut connection.redis).await?;
            connection.identified_at = Instant::now();
        }
        Ok(())
    }
}

async fn identify(redis: &mut MultiplexedConnection) -> Result<String, RedisError> {
    let mut info = redis::pipe();
    info.cmd("INFO").arg("server").cmd("INFO").arg("replication");
    let (server, replication): (String, String) = info.query_async(redis).await?;
    let value = |info: &str, name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name));
        line.map(|value| value.trim().to_owned())
            .ok_or_else(|| RedisError::from((redis::ErrorKind::Parse, "INFO lacks an identity")))
    };
    Ok(format!("{} {}", value(&server, "run_id:")?, value(&replication, "master_replid:")?))
}

/// Where Redis is, and how to log in there.
pub(super) fn server(url: &SecretString, password: Option<&SecretString>) -> anyhow::Result<ConnectionInfo> {
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
    Ok(info)
}

pub(super) fn build(server: ConnectionInfo, connections_max: usize) -> anyhow::Result<Pool> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_MAX))
        .set_response_timeout(Some(RESPONSE_MAX));
    let manager =
        Manager(deadpool_redis::Manager::new_with_config(server, config).context("cannot use REDIS_URL")?);
    Pool::builder(manager)
        .max_size(connections_max)
        .wait_timeout(Some(WAIT_MAX))
        .create_timeout(Some(CONNECT_MAX))
        .recycle_timeout(Some(CONNECT_MAX))
        .runtime(deadpool::Runtime::Tokio1)
        .build()
        .context("cannot build the Redis pool")
}
