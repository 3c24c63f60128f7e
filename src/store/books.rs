//! A tenant's books: balances from snapshot plus tail, and the exclusive lock under which budgets are
//! computed and deposits posted.

use chrono::{DateTime, Utc};
use diesel::{
    QueryableByName,
    sql_types::{BigInt, Bytea, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::TransactionManager as _;
use uuid::Uuid;

use super::{Connection, Error, STATEMENT_MAX, Store, Transactions, rows_on, sql::Sql};
use crate::domain::{
    id::{RunId, TenantId},
    idempotency::{PayloadHash, key_fingerprint},
    limit::Month,
    money::UsdMicros,
};

/// What the ledger says of one tenant: `deposited = available + held + charged`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    /// All that came in.
    pub deposited: UsdMicros,
    /// What can be spent.
    pub available: UsdMicros,
    /// What is set aside for open runs.
    pub held: UsdMicros,
    /// What has been spent.
    pub charged: UsdMicros,
}

/// A tenant's month: what can still be spent in it is what may be, less `base - available`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MonthBooks {
    /// Which.
    pub month: Month,
    /// How long it has still to go, in seconds, rounded up.
    pub secs_left: u32,
    /// What it has been charged so far.
    pub charged: UsdMicros,
    /// What could be spent from its start on: available, held and charged in it.
    pub base: UsdMicros,
}

/// An open run's hold, as the gate needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenHold {
    /// The run.
    pub run_id: RunId,
    /// What is held.
    pub amount: UsdMicros,
    /// The fingerprint of its idempotency key.
    pub key_fingerprint: String,
    /// The hash of its request.
    pub payload: PayloadHash,
}

/// What became of a deposit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deposit {
    /// It is in the books.
    Posted,
    /// The same amount was deposited under this reference before; nothing changed.
    Already,
    /// Another amount was deposited under this reference before; nothing changed.
    ReferenceReused {
        /// That amount.
        amount: UsdMicros,
    },
    /// The tenant's deposits would pass [`UsdMicros::MAX`]; nothing changed.
    AboveMaximum {
        /// What is deposited now.
        deposited: UsdMicros,
    },
}

/// One tenant's books under its exclusive lock: no hold, charge, release or deposit of the tenant
/// commits while this lives. Dropping it without [`LockedBooks::commit`] undoes everything at once.
pub struct LockedBooks {
    /// `None` once committed.
    connection: Option<Connection>,
    tenant_id: TenantId,
    epoch: i64,
    offset: i64,
}

/// An epoch is a number of the sequence, which orders it, and a random tail below this, which makes it
/// unique: a sequence is durable only as far as a later commit made it so, and after a crash gives numbers
/// again that a rebuild which never committed had told Redis. Whole epochs stay below 2^53, Lua's limit, for
/// 2^33 rebuilds.
const EPOCH_TAIL: i64 = 1 << 20;

#[derive(QueryableByName)]
struct BooksRow {
    #[diesel(sql_type = BigInt)]
    last_transfer_id: i64,
    #[diesel(sql_type = BigInt)]
    tail_rows: i64,
    #[diesel(sql_type = BigInt)]
    deposited: i64,
    #[diesel(sql_type = BigInt)]
    available: i64,
    #[diesel(sql_type = BigInt)]
    held: i64,
    #[diesel(sql_type = BigInt)]
    charged: i64,
}

const BOOKS: &str = "-- tenant_books\nSELECT * FROM tenant_books($1::uuid) \
     AS books (last_transfer_id, tail_rows, deposited, available, held, charged)";

impl BooksRow {
    fn balance(&self, tenant_id: TenantId) -> Result<Balance, Error> {
        let amount = |name: &str, micros| {
            UsdMicros::new(micros).map_err(|bad| Error::Corrupt {
                table: "ledger_transfers",
                detail: format!("tenant {tenant_id}: {name} is {micros} micros: {bad}"),
            })
        };
        Ok(Balance {
            deposited: amount("deposited", self.deposited)?,
            available: amount("available", self.available)?,
            held: amount("held", self.held)?,
            charged: amount("charged", self.charged)?,
        })
    }
}

#[derive(QueryableByName)]
struct MonthRow {
    #[diesel(sql_type = BigInt)]
    month: i64,
    #[diesel(sql_type = BigInt)]
    secs_left: i64,
    #[diesel(sql_type = BigInt)]
    charged_usd_micros: i64,
    #[diesel(sql_type = BigInt)]
    base_usd_micros: i64,
}

const MONTH: &str = include_str!("sql/month.sql");

impl MonthRow {
    fn books(&self, tenant_id: TenantId) -> Result<MonthBooks, Error> {
        let amount = |name: &str, micros| {
            UsdMicros::new(micros).map_err(|bad| Error::Corrupt {
                table: "ledger_transfers",
                detail: format!("tenant {tenant_id}: {name} of the month is {micros} micros: {bad}"),
            })
        };
        Ok(MonthBooks {
            month: Month(self.month),
            secs_left: u32::try_from(self.secs_left).unwrap_or(0),
            charged: amount("charged", self.charged_usd_micros)?,
            base: amount("the base", self.base_usd_micros)?,
        })
    }
}

#[derive(QueryableByName)]
struct EpochRow {
    #[diesel(sql_type = BigInt)]
    budget_epoch: i64,
}

impl Store {
    /// What the ledger says of a tenant; all zero for one that does not exist.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Corrupt`] when the ledger shows a negative balance.
    pub async fn balance(&self, tenant_id: TenantId) -> Result<Balance, Error> {
        let rows: Vec<BooksRow> = self.rows("tenant_books", Sql::new(BOOKS).bind(tenant_id.0)).await?;
        one(rows)?.balance(tenant_id)
    }

    /// A tenant's month, now.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn month(&self, tenant_id: TenantId) -> Result<MonthBooks, Error> {
        let rows: Vec<MonthRow> =
            self.rows("month", Sql::new(MONTH).bind(self.offset()).bind(tenant_id.0)).await?;
        one(rows)?.books(tenant_id)
    }

    /// When a reference was deposited, and how much.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn find_deposit(
        &self,
        tenant_id: TenantId,
        reference: &str,
    ) -> Result<Option<(UsdMicros, DateTime<Utc>)>, Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = BigInt)]
            amount_usd_micros: i64,
            #[diesel(sql_type = Timestamptz)]
            created_at: DateTime<Utc>,
        }
        let sql = Sql::new(
            "-- find_deposit\nSELECT amount_usd_micros, created_at FROM ledger_transfers \
             WHERE tenant_id = $1::uuid AND reference = $2::text",
        )
        .bind(tenant_id.0)
        .bind(reference);
        let row: Option<Row> = self.row("find_deposit", sql).await?;
        row.map(|row| match UsdMicros::new(row.amount_usd_micros) {
            Ok(amount) => Ok((amount, row.created_at)),
            Err(bad) => Err(Error::Corrupt {
                table: "ledger_transfers",
                detail: format!("tenant {tenant_id}, reference {reference:?}: {bad}"),
            }),
        })
        .transpose()
    }

    /// The epoch under which holds of this tenant may be inserted; `None` for no such tenant.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn epoch(&self, tenant_id: TenantId) -> Result<Option<i64>, Error> {
        let sql = Sql::new("-- epoch\nSELECT budget_epoch FROM tenants WHERE tenant_id = $1::uuid")
            .bind(tenant_id.0);
        let row: Option<EpochRow> = self.row("epoch", sql).await?;
        Ok(row.map(|row| row.budget_epoch))
    }

    /// Takes the tenant's exclusive lock; `None` for no such tenant. Waits a few seconds for others.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn lock_books(&self, tenant_id: TenantId) -> Result<Option<LockedBooks>, Error> {
        #[derive(QueryableByName)]
        struct Locked {
            #[diesel(sql_type = BigInt)]
            #[expect(dead_code, reason = "a row must have a column")]
            locked: i64,
        }
        let mut connection = self.connection().await?;
        Transactions::begin_transaction(&mut *connection).await?;
        // From here on an early return closes the connection, and with it the transaction.
        let mut books =
            LockedBooks { connection: Some(connection), tenant_id, epoch: 0, offset: self.offset() };
        let lock = Sql::new(
            "-- lock_books\nSELECT 1::bigint AS locked \
             FROM (SELECT pg_advisory_xact_lock(hashtextextended($1::uuid::text, 0))) AS lock",
        )
        .bind(tenant_id.0);
        books.rows::<Locked>(lock).await?;
        // A statement of its own: its snapshot must be younger than the lock.
        let sql = Sql::new("-- locked_epoch\nSELECT budget_epoch FROM tenants WHERE tenant_id = $1::uuid")
            .bind(tenant_id.0);
        let Some(row) = books.rows::<EpochRow>(sql).await?.into_iter().next() else { return Ok(None) };
        books.epoch = row.budget_epoch;
        Ok(Some(books))
    }

    /// Sees that every epoch from now on is above `epoch`. A database that was restored to an earlier
    /// point would otherwise give numbers that Redis has seen before.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn advance_epochs(&self, epoch: i64) -> Result<(), Error> {
        let sql = Sql::new(
            "-- advance_epochs\nSELECT setval('epoch_order_seq', \
                greatest(nextval('epoch_order_seq'), $1::bigint / $2::bigint)) AS budget_epoch",
        )
        .bind(epoch)
        .bind(EPOCH_TAIL);
        self.row::<EpochRow>("advance_epochs", sql).await.map(drop)
    }

    /// Tenants whose ledger has grown by at least `rows` since its last snapshot.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn tenants_to_snapshot(&self, rows: i64, limit: i64) -> Result<Vec<TenantId>, Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = SqlUuid)]
            tenant_id: Uuid,
        }
        // The row that lies `rows` beyond the snapshot either exists or not: no need to count.
        let sql = Sql::new(
            "-- tenants_to_snapshot\nSELECT tenant.tenant_id FROM tenants AS tenant WHERE EXISTS ( \
                SELECT 1 FROM ledger_transfers AS transfer \
                WHERE transfer.tenant_id = tenant.tenant_id AND transfer.transfer_id > coalesce(( \
                    SELECT max(last_transfer_id) FROM ledger_snapshots WHERE tenant_id = tenant.tenant_id), 0) \
                ORDER BY transfer.transfer_id OFFSET $1::bigint LIMIT 1) LIMIT $2::bigint",
        )
        .bind(rows)
        .bind(limit);
        let rows: Vec<Row> = self.rows("tenants_to_snapshot", sql).await?;
        Ok(rows.into_iter().map(|row| TenantId(row.tenant_id)).collect())
    }
}

impl LockedBooks {
    /// The epoch now.
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Ends the epoch: holds admitted under it can no longer be inserted. Returns the new one.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn raise_epoch(&mut self) -> Result<i64, Error> {
        let sql = Sql::new(
            "-- raise_epoch\nUPDATE tenants SET budget_epoch = nextval('epoch_order_seq') * $1::bigint \
                + floor(random() * $1::bigint)::bigint \
             WHERE tenant_id = $2::uuid RETURNING budget_epoch",
        )
        .bind(EPOCH_TAIL)
        .bind(self.tenant_id.0);
        self.epoch = one(self.rows::<EpochRow>(sql).await?)?.budget_epoch;
        Ok(self.epoch)
    }

    /// What the ledger says.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn balance(&mut self) -> Result<Balance, Error> {
        self.books().await?.balance(self.tenant_id)
    }

    /// The tenant's month, now.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn month(&mut self) -> Result<MonthBooks, Error> {
        let sql = Sql::new(MONTH).bind(self.offset).bind(self.tenant_id.0);
        one(self.rows::<MonthRow>(sql).await?)?.books(self.tenant_id)
    }

    async fn books(&mut self) -> Result<BooksRow, Error> {
        one(self.rows(Sql::new(BOOKS).bind(self.tenant_id.0)).await?)
    }

    /// All holds of open runs.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn open_holds(&mut self) -> Result<Vec<OpenHold>, Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = SqlUuid)]
            run_id: Uuid,
            #[diesel(sql_type = BigInt)]
            reserved_usd_micros: i64,
            #[diesel(sql_type = Text)]
            idempotency_key: String,
            #[diesel(sql_type = Bytea)]
            payload_sha256: Vec<u8>,
        }
        let sql = Sql::new(
            "-- open_holds\nSELECT run_id, reserved_usd_micros, idempotency_key, payload_sha256 FROM runs \
             WHERE tenant_id = $1::uuid AND status IN ('QUEUED', 'PROCESSING')",
        )
        .bind(self.tenant_id.0);
        let rows: Vec<Row> = self.rows(sql).await?;
        rows.into_iter()
            .map(|row| {
                let corrupt =
                    || Error::Corrupt { table: "runs", detail: format!("run {}: no legal hold", row.run_id) };
                Ok(OpenHold {
                    run_id: RunId(row.run_id),
                    amount: UsdMicros::new(row.reserved_usd_micros).ok().ok_or_else(corrupt)?,
                    key_fingerprint: key_fingerprint(&row.idempotency_key),
                    payload: PayloadHash(row.payload_sha256.as_slice().try_into().ok().ok_or_else(corrupt)?),
                })
            })
            .collect()
    }

    /// Posts a deposit, once for each reference.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn deposit(&mut self, amount: UsdMicros, reference: &str) -> Result<Deposit, Error> {
        #[derive(QueryableByName)]
        struct Posted {
            #[diesel(sql_type = BigInt)]
            amount_usd_micros: i64,
        }
        let find = Sql::new(
            "-- find_deposit\nSELECT amount_usd_micros FROM ledger_transfers \
             WHERE tenant_id = $1::uuid AND reference = $2::text",
        )
        .bind(self.tenant_id.0)
        .bind(reference);
        if let Some(prior) = self.rows::<Posted>(find).await?.first() {
            return Ok(match UsdMicros::new(prior.amount_usd_micros) {
                Ok(prior) if prior != amount => Deposit::ReferenceReused { amount: prior },
                _ => Deposit::Already,
            });
        }
        let deposited = self.balance().await?.deposited;
        if deposited.checked_add(amount).is_none() {
            return Ok(Deposit::AboveMaximum { deposited });
        }
        let post = Sql::new(
            "-- deposit\nINSERT INTO ledger_transfers (tenant_id, kind, debit_account, credit_account, \
                amount_usd_micros, reference, created_at) \
             VALUES ($1::uuid, 'deposit', 'funding', 'available', $2::bigint, $3::text, \
                statement_timestamp() + $4::bigint * interval '1 microsecond') RETURNING amount_usd_micros",
        )
        .bind(self.tenant_id.0)
        .bind(amount.get())
        .bind(reference)
        .bind(self.offset);
        one(self.rows::<Posted>(post).await?)?;
        Ok(Deposit::Posted)
    }

    /// Writes down what the books say now, so that reading them does not grow with history.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn snapshot(&mut self) -> Result<(), Error> {
        #[derive(QueryableByName)]
        struct Taken {
            #[diesel(sql_type = BigInt)]
            #[expect(dead_code, reason = "a row must have a column")]
            last_transfer_id: i64,
        }
        let books = self.books().await?;
        if books.tail_rows == 0 {
            return Ok(());
        }
        let sql = Sql::new(
            "-- snapshot\nINSERT INTO ledger_snapshots (tenant_id, last_transfer_id, deposited_usd_micros, \
                available_usd_micros, held_usd_micros, charged_usd_micros, created_at) \
             VALUES ($1::uuid, $2::bigint, $3::bigint, $4::bigint, $5::bigint, $6::bigint, \
                statement_timestamp() + $7::bigint * interval '1 microsecond') \
             ON CONFLICT DO NOTHING RETURNING last_transfer_id",
        )
        .bind(self.tenant_id.0)
        .bind(books.last_transfer_id)
        .bind(books.deposited)
        .bind(books.available)
        .bind(books.held)
        .bind(books.charged)
        .bind(self.offset);
        self.rows::<Taken>(sql).await.map(drop)
    }

    async fn rows<T>(&mut self, sql: Sql) -> Result<Vec<T>, Error>
    where
        T: QueryableByName<diesel::pg::Pg> + Send + 'static,
    {
        let connection =
            self.connection.as_mut().ok_or_else(|| Error::Query(anyhow::anyhow!("committed before")))?;
        rows_on(connection, sql).await
    }

    /// Makes the changes so far true and lets go of the lock.
    ///
    /// # Errors
    /// [`Error`]; on [`Error::Unavailable`] they may be true.
    pub async fn commit(mut self) -> Result<(), Error> {
        let Some(connection) = self.connection.as_mut() else { return Ok(()) };
        let commit = tokio::time::timeout(STATEMENT_MAX, Transactions::commit_transaction(&mut **connection));
        commit.await.map_err(|elapsed| Error::Unavailable(elapsed.into()))??;
        // Only a connection without an open transaction goes back to the pool.
        drop(self.connection.take());
        Ok(())
    }
}

impl Drop for LockedBooks {
    /// Closes a connection whose transaction is open. Back in the pool it would hold the tenant's lock
    /// until somebody else drew it.
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            drop(Connection::take(connection));
        }
    }
}

fn one<T>(rows: Vec<T>) -> Result<T, Error> {
    rows.into_iter().next().ok_or_else(|| Error::Query(anyhow::anyhow!("a statement returned no row")))
}
