//! What `dpp audit` asks of the database. It only reads.

use diesel::{
    QueryableByName,
    sql_types::{BigInt, Nullable, Text, Uuid as SqlUuid},
};
use uuid::Uuid;

use super::{Error, Store, sql::Sql};
use crate::domain::id::{RunId, TenantId};

/// A difference between two places that should agree.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// Which comparison.
    pub kind: String,
    /// Whose.
    pub tenant_id: TenantId,
    /// Which run, where it is about one.
    pub run_id: Option<RunId>,
    /// What it should be.
    pub expected_usd_micros: i64,
    /// What it is.
    pub found_usd_micros: i64,
    /// In words.
    pub detail: String,
}

/// A completed run, for holding against its object.
#[derive(Clone, Debug)]
pub struct RunCharge {
    /// The run.
    pub run_id: RunId,
    /// Its buyer.
    pub tenant_id: TenantId,
    /// What it cost.
    pub cost_usd_micros: i64,
    /// Where its object lies.
    pub result_key: String,
    /// What its bytes hash to.
    pub sha256: String,
}

#[derive(QueryableByName)]
struct FindingRow {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: Uuid,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    run_id: Option<Uuid>,
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = BigInt)]
    expected: i64,
    #[diesel(sql_type = BigInt)]
    found: i64,
    #[diesel(sql_type = Text)]
    detail: String,
}

impl From<FindingRow> for Finding {
    fn from(row: FindingRow) -> Self {
        Self {
            kind: row.kind,
            tenant_id: TenantId(row.tenant_id),
            run_id: row.run_id.map(RunId),
            expected_usd_micros: row.expected,
            found_usd_micros: row.found,
            detail: row.detail,
        }
    }
}

impl Store {
    /// Differences within the database: ledger against runs, and snapshots and usage against the ledger.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn audit_books(&self) -> Result<Vec<Finding>, Error> {
        let mut findings: Vec<Finding> = Vec::new();
        for (op, text) in [
            ("audit_runs", include_str!("sql/audit_runs.sql")),
            ("audit_tenants", include_str!("sql/audit_tenants.sql")),
            ("audit_usage", include_str!("sql/audit_usage.sql")),
        ] {
            let rows: Vec<FindingRow> = self.patient_rows(op, Sql::new(text)).await?;
            findings.extend(rows.into_iter().map(Finding::from));
        }
        Ok(findings)
    }

    /// How many runs there are.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn count_runs(&self) -> Result<i64, Error> {
        #[derive(QueryableByName)]
        struct Count {
            #[diesel(sql_type = BigInt)]
            runs: i64,
        }
        let rows: Vec<Count> = self
            .patient_rows("count_runs", Sql::new("-- count_runs\nSELECT count(*) AS runs FROM runs"))
            .await?;
        Ok(rows.first().map_or(0, |row| row.runs))
    }

    /// Completed runs within their retention, in the order of their ids, after `after`.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn completed(&self, after: Option<RunId>, limit: i64) -> Result<Vec<RunCharge>, Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = SqlUuid)]
            run_id: Uuid,
            #[diesel(sql_type = SqlUuid)]
            tenant_id: Uuid,
            #[diesel(sql_type = BigInt)]
            actual_cost_usd_micros: i64,
            #[diesel(sql_type = Text)]
            result_key: String,
            #[diesel(sql_type = Text)]
            result_sha256: String,
        }
        let sql = Sql::new(
            "-- completed\nSELECT run_id, tenant_id, actual_cost_usd_micros, result_key, result_sha256 FROM runs \
             WHERE status = 'COMPLETED' AND ($1::uuid IS NULL OR run_id > $1::uuid) \
                AND retention_until > statement_timestamp() + $2::bigint * interval '1 microsecond' \
             ORDER BY run_id LIMIT $3::bigint",
        )
        .bind(after.map(|run| run.0))
        .bind(self.offset())
        .bind(limit);
        let rows: Vec<Row> = self.rows("completed", sql).await?;
        Ok(rows
            .into_iter()
            .map(|row| RunCharge {
                run_id: RunId(row.run_id),
                tenant_id: TenantId(row.tenant_id),
                cost_usd_micros: row.actual_cost_usd_micros,
                result_key: row.result_key,
                sha256: row.result_sha256,
            })
            .collect())
    }
}
