//! Usage: what a tenant's ended runs were charged, by UTC day and pack.
//!
//! A run belongs to the day on which it ended, by its ledger rows. `tenant_usage_daily` holds what is
//! rolled up, a mark says how far that goes, and the rest is read from the ledger: the sum is the ledger's
//! at any instant, and no clock decides what has been counted.

use chrono::NaiveDate;
use diesel::{
    QueryableByName,
    sql_types::{BigInt, Bool, Date, Text, Uuid as SqlUuid},
};
use uuid::Uuid;

use super::{Error, Store, sql::Sql};
use crate::domain::{id::TenantId, money::UsdMicros};

/// Ledger rows that one statement rolls up.
const STEP_ROWS: i64 = 20_000;

/// One pack on one day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageRow {
    /// The UTC day.
    pub date: NaiveDate,
    /// The pack.
    pub pack_type: String,
    /// How many runs ended, whatever their end and their cost.
    pub runs: u64,
    /// What they were charged.
    pub charged: UsdMicros,
}

/// A tenant whose usage can be rolled up further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueRollUp {
    /// The tenant.
    pub tenant_id: TenantId,
    /// Whether its ledger holds a day that is over and in no snapshot yet.
    pub needs_snapshot: bool,
}

impl Store {
    /// A tenant's usage from `first` to `last`, both included, in the order of days and packs.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn usage(
        &self,
        tenant_id: TenantId,
        first: NaiveDate,
        last: NaiveDate,
    ) -> Result<Vec<UsageRow>, Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Date)]
            usage_date: NaiveDate,
            #[diesel(sql_type = Text)]
            pack_type: String,
            #[diesel(sql_type = BigInt)]
            runs: i64,
            #[diesel(sql_type = BigInt)]
            charged_usd_micros: i64,
        }
        let sql = Sql::new(include_str!("sql/usage.sql")).bind(tenant_id.0).bind(first).bind(last);
        let rows: Vec<Row> = self.rows("usage", sql).await?;
        rows.into_iter()
            .map(|row| {
                let corrupt = |what: &str| Error::Corrupt {
                    table: "tenant_usage_daily",
                    detail: format!("tenant {tenant_id} on {}: {what}", row.usage_date),
                };
                Ok(UsageRow {
                    runs: row.runs.try_into().ok().ok_or_else(|| corrupt("a count below zero"))?,
                    charged: UsdMicros::new(row.charged_usd_micros)
                        .map_err(|bad| corrupt(&bad.to_string()))?,
                    date: row.usage_date,
                    pack_type: row.pack_type,
                })
            })
            .collect()
    }

    /// Tenants whose usage can be rolled up further, in the order of their ids, after `after`: those with
    /// a snapshot beyond the mark, and those whose next ledger row is of a day that is over. When it is
    /// rolled up is all that this decides; what a row counts for, its own time says.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn due_roll_ups(&self, after: Option<TenantId>, limit: i64) -> Result<Vec<DueRollUp>, Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = SqlUuid)]
            tenant_id: Uuid,
            #[diesel(sql_type = Bool)]
            needs_snapshot: bool,
        }
        let sql = Sql::new(
            "-- due_roll_ups\nSELECT tenant.tenant_id, next.of_a_past_day AS needs_snapshot FROM tenants AS tenant, \
                LATERAL (SELECT coalesce((SELECT last_transfer_id FROM tenant_usage_marks \
                    WHERE tenant_id = tenant.tenant_id), 0) AS rolled, coalesce(( \
                    SELECT max(last_transfer_id) FROM ledger_snapshots \
                    WHERE tenant_id = tenant.tenant_id), 0) AS safe) AS mark, \
                LATERAL (SELECT coalesce(( \
                    SELECT transfer.created_at < date_trunc('day', \
                        statement_timestamp() + $1::bigint * interval '1 microsecond', 'UTC') \
                    FROM ledger_transfers AS transfer WHERE transfer.tenant_id = tenant.tenant_id \
                        AND transfer.transfer_id > greatest(mark.rolled, mark.safe) \
                    ORDER BY transfer.transfer_id LIMIT 1), false) AS of_a_past_day) AS next \
             WHERE ($2::uuid IS NULL OR tenant.tenant_id > $2::uuid) AND (mark.safe > mark.rolled OR next.of_a_past_day) \
             ORDER BY tenant.tenant_id LIMIT $3::bigint",
        )
        .bind(self.offset())
        .bind(after.map(|tenant| tenant.0))
        .bind(limit);
        let rows: Vec<Row> = self.rows("due_roll_ups", sql).await?;
        Ok(rows
            .into_iter()
            .map(|row| DueRollUp { tenant_id: TenantId(row.tenant_id), needs_snapshot: row.needs_snapshot })
            .collect())
    }

    /// Rolls a tenant's usage up by a step, at most to its newest snapshot. Whether there is more to do;
    /// `None` when there was nothing to do, or somebody else did it.
    ///
    /// # Errors
    /// [`Error`]; on [`Error::Unavailable`] the step may be done.
    pub async fn roll_up_usage(&self, tenant_id: TenantId) -> Result<Option<bool>, Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Bool)]
            more: bool,
        }
        let sql = Sql::new(include_str!("sql/roll_up_usage.sql"))
            .bind(tenant_id.0)
            .bind(STEP_ROWS)
            .bind(self.offset());
        let row: Option<Row> = self.row("roll_up_usage", sql).await?;
        Ok(row.map(|row| row.more))
    }
}
