//! PostgreSQL: the truth. The only module that knows diesel.
//!
//! It decides nothing: each function is one statement or one short transaction, and says in its
//! answer who won. Every instant that matters is the database's own clock; tests move it with
//! [`Store::move_clock`].

mod audit;
mod books;
mod due;
mod error;
mod keys;
mod lists;
mod migrate;
mod row;
mod runs;
mod sql;
mod tenants;
mod usage;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use diesel::{QueryableByName, sql_types::Timestamptz};
use diesel_async::{
    AsyncConnection, AsyncPgConnection, RunQueryDsl as _, SimpleAsyncConnection as _,
    TransactionManager as _,
    pooled_connection::{
        AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod,
        deadpool::{Object, Pool},
    },
};
use futures::FutureExt as _;
use secrecy::{ExposeSecret as _, SecretString};

use self::sql::Sql;
use crate::telemetry;

pub use self::{
    audit::{Books, Finding, RunCharge, RunRange},
    books::{Balance, Deposit, LockedBooks, MonthBooks, OpenHold},
    due::{DueClaim, DueExpiry, DueLease, DuePurge, DueSend},
    error::Error,
    keys::{KeyRecord, NewKey, NewLimits},
    lists::{Entry, RunFilter, RunPlace},
    migrate::{SchemaState, migrate, schema_listing, schema_state},
    runs::{Ending, Guard, NewRun, Submitted},
    tenants::TenantRecord,
    usage::{DueRollUp, UsageRow},
};

/// How long a caller waits for a connection.
const CONNECTION_WAIT_MAX: Duration = Duration::from_millis(1_500);
/// How long a new connection may take to open.
const CONNECT_MAX: Duration = Duration::from_millis(1_500);
/// How old a connection may get: an address may have come to mean another server.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(30 * 60);
/// How long bytes may stay unacknowledged before a connection counts as cut.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);
/// How long one statement may take before its outcome counts as unknown. The server stops it a
/// little earlier.
const STATEMENT_MAX: Duration = Duration::from_secs(10);

/// Set on every connection: nothing runs for ever, nothing waits for ever on a lock, and an abandoned
/// transaction does not hold one.
const SESSION_SETUP: &str = "SET statement_timeout = '9s'; SET lock_timeout = '5s'; \
     SET idle_in_transaction_session_timeout = '15s'; SET timezone = 'UTC'; SET application_name = 'dpp'";

type Connection = Object<AsyncPgConnection>;
type Transactions = <AsyncPgConnection as AsyncConnection>::TransactionManager;

/// A pool of connections to the database, and the clock's offset. Clones share both.
#[derive(Clone)]
pub struct Store {
    pool: Pool<AsyncPgConnection>,
    clock_offset_micros: Arc<AtomicI64>,
}

impl Store {
    /// A store at `url`; connects when first used.
    ///
    /// # Errors
    /// When the pool cannot be built.
    pub fn new(url: &SecretString, connections_max: usize) -> anyhow::Result<Self> {
        let mut config = ManagerConfig::<AsyncPgConnection>::default();
        // A closed connection is noticed without asking; a ping for each checkout would double the
        // round trips.
        config.recycling_method = RecyclingMethod::Fast;
        config.custom_setup = Box::new(|url| connect(url.to_owned()).boxed());
        let manager = AsyncDieselConnectionManager::new_with_config(url.expose_secret(), config);
        let pool = Pool::builder(manager)
            .max_size(connections_max)
            .wait_timeout(Some(CONNECTION_WAIT_MAX))
            .create_timeout(Some(CONNECT_MAX))
            .recycle_timeout(Some(CONNECT_MAX))
            .runtime(deadpool::Runtime::Tokio1)
            .pre_recycle(deadpool::managed::Hook::sync_fn(|_, metrics| {
                if metrics.created.elapsed() < CONNECTION_AGE_MAX {
                    Ok(())
                } else {
                    Err(deadpool::managed::HookError::message("old"))
                }
            }))
            .build()
            .context("cannot build the database pool")?;
        Ok(Self { pool, clock_offset_micros: Arc::default() })
    }

    /// Moves the clock by which leases, claims and retention are judged. For tests.
    pub fn move_clock(&self, by: chrono::TimeDelta) {
        let micros = by.num_microseconds().unwrap_or(0);
        self.clock_offset_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// What the store adds to the database's clock, in microseconds; zero outside tests.
    fn offset(&self) -> i64 {
        AtomicI64::load(&self.clock_offset_micros, Ordering::Relaxed)
    }

    /// The database's clock.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn now(&self) -> Result<DateTime<Utc>, Error> {
        #[derive(QueryableByName)]
        struct Now {
            #[diesel(sql_type = Timestamptz)]
            at: DateTime<Utc>,
        }
        let sql =
            Sql::new("-- now\nSELECT statement_timestamp() + $1::bigint * interval '1 microsecond' AS at")
                .bind(self.offset());
        let row: Option<Now> = self.row("now", sql).await?;
        row.map(|row| row.at).ok_or_else(|| Error::Query(anyhow::anyhow!("no row")))
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn ping(&self) -> Result<(), Error> {
        self.now().await.map(drop)
    }

    async fn connection(&self) -> Result<Connection, Error> {
        self.pool.get().await.map_err(|error| Error::Unavailable(error.into()))
    }

    /// Runs a statement on a connection of its own and returns its rows.
    async fn rows<T>(&self, op: &'static str, sql: Sql) -> Result<Vec<T>, Error>
    where
        T: QueryableByName<diesel::pg::Pg> + Send + 'static,
    {
        let started = std::time::Instant::now();
        let answer = async {
            let mut connection = self.connection().await?;
            let answer = rows_on(&mut connection, sql).await;
            if matches!(answer, Err(Error::Unavailable(_))) {
                // Its statement may still run, and whoever came next would wait behind it.
                drop(Object::take(connection));
            }
            answer
        }
        .await;
        metrics::histogram!("dpp_store_seconds", "op" => op).record(started.elapsed());
        if answer.is_err() {
            metrics::counter!("dpp_store_errors_total", "op" => op).increment(1);
        }
        answer
    }

    /// The same, for an audit's scans: with a limit of ten minutes, and unable to write.
    async fn patient_rows<T>(&self, op: &'static str, sql: Sql) -> Result<Vec<T>, Error>
    where
        T: QueryableByName<diesel::pg::Pg> + Send + 'static,
    {
        let started = std::time::Instant::now();
        let mut connection = self.connection().await?;
        let answer = async {
            Transactions::begin_transaction(&mut *connection).await?;
            connection
                .batch_execute("SET TRANSACTION READ ONLY; SET LOCAL statement_timeout = '10min'")
                .await?;
            let rows = sql.load::<T>(&mut connection).await?;
            Transactions::commit_transaction(&mut *connection).await?;
            Ok(rows)
        }
        .await;
        metrics::histogram!("dpp_store_seconds", "op" => op).record(started.elapsed());
        if answer.is_err() {
            metrics::counter!("dpp_store_errors_total", "op" => op).increment(1);
            // Its transaction may be open.
            drop(Object::take(connection));
        }
        answer
    }

    /// The same, for at most one row.
    async fn row<T>(&self, op: &'static str, sql: Sql) -> Result<Option<T>, Error>
    where
        T: QueryableByName<diesel::pg::Pg> + Send + 'static,
    {
        Ok(self.rows(op, sql).await?.into_iter().next())
    }
}

/// Runs a statement on a connection at hand, with a limit. A statement that passes it leaves the
/// connection in an unknown state, so whoever holds it closes it.
async fn rows_on<T>(connection: &mut Connection, sql: Sql) -> Result<Vec<T>, Error>
where
    T: QueryableByName<diesel::pg::Pg> + Send + 'static,
{
    let answer = tokio::time::timeout(STATEMENT_MAX, sql.load::<T>(&mut **connection)).await;
    match answer {
        Ok(rows) => Ok(rows?),
        Err(elapsed) => Err(Error::Unavailable(elapsed.into())),
    }
}

/// Opens a connection, with TLS where the URL's `sslmode` asks for it or the server offers it.
async fn connect(url: String) -> diesel::ConnectionResult<AsyncPgConnection> {
    let bad = |error: &dyn std::error::Error| diesel::ConnectionError::BadConnection(telemetry::chain(error));
    // With rustls every TLS connection is verified in full, which these modes only ask for by name.
    let url =
        url.replace("sslmode=verify-full", "sslmode=require").replace("sslmode=verify-ca", "sslmode=require");
    let mut config: tokio_postgres::Config = url.parse().map_err(|error| bad(&error))?;
    config
        .keepalives_idle(UNACKNOWLEDGED_MAX)
        .tcp_user_timeout(UNACKNOWLEDGED_MAX)
        .target_session_attrs(tokio_postgres::config::TargetSessionAttrs::ReadWrite);
    let mut connection = if config.get_ssl_mode() == tokio_postgres::config::SslMode::Disable {
        let (client, driver) = config.connect(tokio_postgres::NoTls).await.map_err(|error| bad(&error))?;
        AsyncPgConnection::try_from_client_and_connection(client, driver).await?
    } else {
        let tls = tokio_postgres_rustls::MakeRustlsConnect::new(tls_config());
        let (client, driver) = config.connect(tls).await.map_err(|error| bad(&error))?;
        AsyncPgConnection::try_from_client_and_connection(client, driver).await?
    };
    connection
        .batch_execute(SESSION_SETUP)
        .await
        .map_err(diesel::ConnectionError::CouldntSetupConfiguration)?;
    Ok(connection)
}

fn tls_config() -> rustls::ClientConfig {
    static CONFIG: std::sync::LazyLock<rustls::ClientConfig> = std::sync::LazyLock::new(|| {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
    });
    CONFIG.clone()
}
