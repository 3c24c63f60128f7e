//! Migrations, embedded in the binary, and whether a database is what this build expects.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, anyhow};
use diesel::{
    QueryableByName,
    sql_types::{Bool, Text},
};
use diesel_async::{AsyncMigrationHarness, AsyncPgConnection, RunQueryDsl as _, SimpleAsyncConnection as _};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness as _, embed_migrations};
use secrecy::{ExposeSecret as _, SecretString};

use super::{connect, sql::Sql};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// The catalogue after all migrations, as `schema_listing.sql` prints it.
const EXPECTED: &str = include_str!("schema.txt");

/// One process at a time migrates a database.
const MIGRATION_LOCK: i64 = 0x6470_705f_6d69_6772;
const LOCK_WAIT_MAX: Duration = Duration::from_secs(60);
const LOCK_POLL: Duration = Duration::from_millis(50);

/// How a database compares with this build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SchemaState {
    /// Just what this build expects.
    Current,
    /// These migrations have not been applied.
    Pending(Vec<String>),
    /// The database has migrations that this build does not know: it is older than the database.
    Ahead(Vec<String>),
    /// All migrations are applied, but the catalogue differs: `-` is missing, `+` is extra.
    Drifted(Vec<String>),
}

/// Applies what is pending, in order, each in a transaction of its own. Returns the names. Processes
/// that race wait for each other. Must be called on a multi-threaded runtime.
///
/// # Errors
/// When the database cannot be reached or a migration fails.
pub async fn migrate(url: &SecretString) -> anyhow::Result<Vec<String>> {
    let mut connection = open(url).await?;
    // Held by the session, so that it spans the transactions; the session ends with this function.
    connection.batch_execute("SET statement_timeout = 0; SET lock_timeout = '60s'").await?;
    lock(&mut connection).await?;
    let mut harness = AsyncMigrationHarness::new(connection);
    if !harness.pending_migrations(MIGRATIONS).map_err(unreadable)?.is_empty() {
        let mut connection = harness.into_inner();
        drop_unfinished_indexes(&mut connection).await?;
        harness = AsyncMigrationHarness::new(connection);
    }
    let applied =
        harness.run_pending_migrations(MIGRATIONS).map_err(|error| anyhow!("a migration failed: {error}"))?;
    Ok(applied.iter().map(ToString::to_string).collect())
}

/// Waits for other migrations. By asking again and again: a statement that waits for the lock has a snapshot,
/// and an index that is built CONCURRENTLY under the lock waits for all snapshots.
async fn lock(connection: &mut AsyncPgConnection) -> anyhow::Result<()> {
    #[derive(QueryableByName)]
    struct Lock {
        #[diesel(sql_type = Bool)]
        taken: bool,
    }
    let wait = async {
        loop {
            let ask = Sql::new("-- migration_lock\nSELECT pg_try_advisory_lock($1::bigint) AS taken")
                .bind(MIGRATION_LOCK);
            let answer: Vec<Lock> = ask.load(connection).await?;
            if answer.iter().any(|lock| lock.taken) {
                return anyhow::Ok(());
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    };
    let waited = tokio::time::timeout(LOCK_WAIT_MAX, wait).await;
    waited.context("another process has been migrating this database for too long")?
}

/// Drops what is left of our indexes whose building, CONCURRENTLY and so outside a transaction, was cut short:
/// they serve no query, and stand in the way of their migration. Others' indexes, and those that are being
/// built right now, are none of ours.
async fn drop_unfinished_indexes(connection: &mut AsyncPgConnection) -> anyhow::Result<()> {
    #[derive(QueryableByName)]
    struct Index {
        #[diesel(sql_type = Text)]
        name: String,
    }
    let unfinished = Sql::new(
        "-- unfinished_indexes\nSELECT relation.relname::text AS name \
         FROM pg_index JOIN pg_class AS relation ON relation.oid = pg_index.indexrelid \
         WHERE NOT pg_index.indisvalid AND relation.relnamespace = 'public'::regnamespace \
            AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index AS building \
                WHERE building.index_relid = pg_index.indexrelid)",
    );
    let unfinished: Vec<Index> = unfinished.load(connection).await?;
    for Index { name } in unfinished {
        if EXPECTED.lines().any(|line| line.starts_with(&format!("index {name} on "))) {
            tracing::warn!(index = name, "an index was left unfinished; dropping it, to build it anew");
            connection.batch_execute(&format!("DROP INDEX CONCURRENTLY public.\"{name}\"")).await?;
        }
    }
    Ok(())
}

fn unreadable(error: Box<dyn std::error::Error + Send + Sync>) -> anyhow::Error {
    anyhow!("cannot read the migrations: {error}")
}

/// Compares a database with this build.
///
/// # Errors
/// When the database cannot be reached.
pub async fn schema_state(url: &SecretString) -> anyhow::Result<SchemaState> {
    let connection = open(url).await?;
    let mut harness = AsyncMigrationHarness::new(connection);
    let pending = harness.pending_migrations(MIGRATIONS).map_err(unreadable)?;
    if !pending.is_empty() {
        return Ok(SchemaState::Pending(
            pending.iter().map(|migration| migration.name().to_string()).collect(),
        ));
    }
    let applied = harness.applied_migrations().map_err(unreadable)?;
    let known =
        diesel::migration::MigrationSource::<diesel::pg::Pg>::migrations(&MIGRATIONS).map_err(unreadable)?;
    let known: BTreeSet<_> = known.iter().map(|migration| migration.name().version().to_string()).collect();
    let ahead: Vec<_> =
        applied.iter().map(ToString::to_string).filter(|version| !known.contains(version)).collect();
    if !ahead.is_empty() {
        return Ok(SchemaState::Ahead(ahead));
    }
    let found = listing(&mut harness.into_inner()).await?;
    let expected: BTreeSet<_> = EXPECTED.lines().collect();
    let found: BTreeSet<_> = found.lines().collect();
    let missing = expected.difference(&found).map(|line| format!("- {line}"));
    let drift: Vec<_> = missing.chain(found.difference(&expected).map(|line| format!("+ {line}"))).collect();
    Ok(if drift.is_empty() { SchemaState::Current } else { SchemaState::Drifted(drift) })
}

/// The catalogue of a database as text, for `schema.txt`.
///
/// # Errors
/// When the database cannot be reached.
pub async fn schema_listing(url: &SecretString) -> anyhow::Result<String> {
    listing(&mut open(url).await?).await
}

async fn listing(connection: &mut AsyncPgConnection) -> anyhow::Result<String> {
    #[derive(QueryableByName)]
    struct Line {
        #[diesel(sql_type = Text)]
        line: String,
    }
    let lines: Vec<Line> = Sql::new(include_str!("sql/schema_listing.sql")).load(connection).await?;
    Ok(lines.into_iter().map(|line| line.line + "\n").collect())
}

async fn open(url: &SecretString) -> anyhow::Result<AsyncPgConnection> {
    connect(url.expose_secret().to_owned()).await.context("cannot connect to the database")
}
