//! Lists that a tenant reads, newest first, from a place on.

use chrono::{DateTime, Utc};
use diesel::{
    QueryableByName,
    sql_types::{BigInt, Bytea, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use uuid::Uuid;

use super::{
    Error, Store,
    row::{RunRow, run_columns},
    sql::Sql,
};
use crate::domain::{
    cursor::CursorKey,
    id::{RunId, TenantId},
    money::UsdMicros,
    run::Run,
};

/// Which runs a list shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RunFilter {
    /// Those of this status.
    pub status: Option<&'static str>,
    /// Those of this pack.
    pub pack_type: Option<String>,
    /// Those made at this instant or later.
    pub created_after: Option<DateTime<Utc>>,
    /// Those made before this instant.
    pub created_before: Option<DateTime<Utc>>,
}

/// A place in a list of runs: that of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunPlace {
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// Which it is.
    pub run_id: RunId,
}

/// An entry in a tenant's statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place. Counts the platform's transfers, so it is nobody else's business.
    pub transfer_id: i64,
    /// `deposit`, `hold`, `charge`, `release` or `adjust`.
    pub kind: String,
    /// The account that it was taken from.
    pub debit_account: String,
    /// The account that it was given to.
    pub credit_account: String,
    /// How much.
    pub amount: UsdMicros,
    /// The run that it is for, where there is one.
    pub run_id: Option<RunId>,
    /// What it was posted under, where it is for no run.
    pub reference: Option<String>,
    /// When.
    pub created_at: DateTime<Utc>,
    /// What could be spent after it.
    pub available: UsdMicros,
}

impl Store {
    /// A tenant's runs that are not past their retention, newest first, after the one that `after` names.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn list_runs(
        &self,
        tenant_id: TenantId,
        filter: &RunFilter,
        after: Option<RunPlace>,
        limit: i64,
    ) -> Result<Vec<Run>, Error> {
        // Rows that are purged are past their retention; naming them lets the index that has none serve.
        macro_rules! text {
            ($status:literal) => {
                concat!(
                    "-- list_runs\nSELECT ",
                    run_columns!(),
                    " FROM runs AS run WHERE run.tenant_id = $1::uuid AND run.purged_at IS NULL \
                     AND (run.created_at, run.run_id) < (coalesce($2::timestamptz, 'infinity'), \
                        coalesce($3::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')) \
                     AND run.created_at >= coalesce($4::timestamptz, '-infinity') \
                     AND run.created_at < coalesce($5::timestamptz, 'infinity') \
                     AND ($6::text IS NULL OR run.status = $6::text) AND ($7::text IS NULL OR run.pack_type = $7::text) \
                     AND (run.retention_until IS NULL \
                        OR run.retention_until > statement_timestamp() + $8::bigint * interval '1 microsecond') ",
                    $status,
                    " ORDER BY run.created_at DESC, run.run_id DESC LIMIT $9::bigint"
                )
            };
        }
        let text = match filter.status {
            // Open runs, and those that did not complete, have indexes of their own, of which a parameter tells
            // nothing.
            Some("QUEUED" | "PROCESSING") => text!("AND run.status IN ('QUEUED', 'PROCESSING')"),
            Some("FAILED") => text!("AND run.status = 'FAILED'"),
            Some("EXPIRED") => text!("AND run.status = 'EXPIRED'"),
            Some("CANCELLED") => text!("AND run.status = 'CANCELLED'"),
            _ => text!(""),
        };
        let sql = Sql::new(text)
            .bind(tenant_id.0)
            .bind(after.map(|place| place.created_at))
            .bind(after.map(|place| place.run_id.0))
            .bind(filter.created_after)
            .bind(filter.created_before)
            .bind(filter.status.map(str::to_owned))
            .bind(filter.pack_type.clone())
            .bind(self.offset())
            .bind(limit);
        let rows: Vec<RunRow> = self.rows("list_runs", sql).await?;
        rows.into_iter().map(Run::try_from).collect()
    }

    /// A tenant's ledger entries, newest first, after the one that `after` names, each with what could be
    /// spent after it.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn statement(
        &self,
        tenant_id: TenantId,
        after: Option<i64>,
        limit: i64,
    ) -> Result<Vec<Entry>, Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = BigInt)]
            transfer_id: i64,
            #[diesel(sql_type = Text)]
            kind: String,
            #[diesel(sql_type = Text)]
            debit_account: String,
            #[diesel(sql_type = Text)]
            credit_account: String,
            #[diesel(sql_type = BigInt)]
            amount_usd_micros: i64,
            #[diesel(sql_type = Nullable<SqlUuid>)]
            run_id: Option<Uuid>,
            #[diesel(sql_type = Nullable<Text>)]
            reference: Option<String>,
            #[diesel(sql_type = Timestamptz)]
            created_at: DateTime<Utc>,
            #[diesel(sql_type = BigInt)]
            available_usd_micros: i64,
        }
        let sql = Sql::new(include_str!("sql/statement.sql"))
            .bind(tenant_id.0)
            .bind(after.unwrap_or(i64::MAX))
            .bind(limit);
        let rows: Vec<Row> = self.rows("statement", sql).await?;
        rows.into_iter()
            .map(|row| {
                let amount = |micros| {
                    UsdMicros::new(micros).map_err(|bad| Error::Corrupt {
                        table: "ledger_transfers",
                        detail: format!("transfer {}: {bad}", row.transfer_id),
                    })
                };
                Ok(Entry {
                    amount: amount(row.amount_usd_micros)?,
                    available: amount(row.available_usd_micros)?,
                    transfer_id: row.transfer_id,
                    kind: row.kind,
                    debit_account: row.debit_account,
                    credit_account: row.credit_account,
                    run_id: row.run_id.map(RunId),
                    reference: row.reference,
                    created_at: row.created_at,
                })
            })
            .collect()
    }

    /// What cursors are sealed with, by all replicas.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Corrupt`] when somebody has removed it.
    pub async fn cursor_key(&self) -> Result<CursorKey, Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Bytea)]
            secret: Vec<u8>,
        }
        let sql = Sql::new("-- cursor_key\nSELECT secret FROM service_secrets WHERE name = $1::text")
            .bind("cursors");
        let row: Option<Row> = self.row("cursor_key", sql).await?;
        let secret = row.and_then(|row| <[u8; 32]>::try_from(row.secret).ok());
        secret.map(CursorKey::new).ok_or_else(|| Error::Corrupt {
            table: "service_secrets",
            detail: "there is no secret of 32 bytes named cursors".to_owned(),
        })
    }
}
