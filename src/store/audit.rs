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

/// One snapshot, and what it should be.
#[derive(Clone, Copy, Debug, QueryableByName)]
struct SnapshotRow {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: Uuid,
    #[diesel(sql_type = BigInt)]
    last_transfer_id: i64,
    #[diesel(sql_type = BigInt)]
    deposited: i64,
    #[diesel(sql_type = BigInt)]
    available: i64,
    #[diesel(sql_type = BigInt)]
    held: i64,
    #[diesel(sql_type = BigInt)]
    charged: i64,
    #[diesel(sql_type = BigInt)]
    expected_deposited: i64,
    #[diesel(sql_type = BigInt)]
    expected_available: i64,
    #[diesel(sql_type = BigInt)]
    expected_held: i64,
    #[diesel(sql_type = BigInt)]
    expected_charged: i64,
}

/// A tenant's books at one instant, as they are: an auditor must be able to read a balance that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, QueryableByName)]
pub struct Books {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: Uuid,
    /// The epoch under which holds may be inserted.
    #[diesel(sql_type = BigInt)]
    pub budget_epoch: i64,
    #[diesel(sql_type = BigInt)]
    last_transfer_id: i64,
    #[diesel(sql_type = BigInt)]
    tail_rows: i64,
    /// What can be spent.
    #[diesel(sql_type = BigInt)]
    pub available: i64,
    /// What is set aside for open runs.
    #[diesel(sql_type = BigInt)]
    pub held: i64,
    /// How many runs are open.
    #[diesel(sql_type = BigInt)]
    pub open_runs: i64,
    /// What the open runs reserved.
    #[diesel(sql_type = BigInt)]
    pub open_reserved: i64,
}

impl Books {
    /// The tenant.
    pub fn tenant_id(&self) -> TenantId {
        TenantId(self.tenant_id)
    }
}

/// Where a scan of all runs stands: a range of their ids.
#[derive(Clone, Copy, Debug)]
pub struct RunRange {
    after: Uuid,
    upto: Uuid,
    /// How many runs are in it.
    pub runs: i64,
}

impl Store {
    /// The range of the next `rows` runs after `prior`; `None` when that was the last. All ranges together
    /// hold every id, so also those that only the ledger knows.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn audit_range(&self, prior: Option<RunRange>, rows: i64) -> Result<Option<RunRange>, Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = BigInt)]
            runs: i64,
            #[diesel(sql_type = Nullable<SqlUuid>)]
            last: Option<Uuid>,
        }
        let after = prior.map_or(Uuid::nil(), |prior| prior.upto);
        if after == Uuid::max() {
            return Ok(None);
        }
        let sql = Sql::new(
            "-- audit_range\nSELECT count(*) AS runs, (array_agg(run_id ORDER BY run_id DESC))[1] AS last \
             FROM (SELECT run_id FROM runs WHERE run_id > $1::uuid ORDER BY run_id LIMIT $2::bigint) AS page",
        )
        .bind(after)
        .bind(rows);
        let page: Vec<Row> = self.patient_rows("audit_range", sql).await?;
        let (runs, last) = page.first().map_or((0, None), |row| (row.runs, row.last));
        let upto = last.filter(|_| runs == rows).unwrap_or(Uuid::max());
        Ok(Some(RunRange { after, upto, runs }))
    }

    /// Where runs and ledger differ, in one range of runs.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn audit_runs(&self, range: RunRange) -> Result<Vec<Finding>, Error> {
        let sql = Sql::new(include_str!("sql/audit_runs.sql")).bind(range.after).bind(range.upto);
        let rows: Vec<FindingRow> = self.patient_rows("audit_runs", sql).await?;
        Ok(rows.into_iter().map(Finding::from).collect())
    }

    /// Where snapshots differ from the history that they stand for: the `rows` after `after`, and the last
    /// that was looked at, if there was one.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn audit_snapshots(
        &self,
        after: Option<(TenantId, i64)>,
        rows: i64,
    ) -> Result<(Vec<Finding>, Option<(TenantId, i64)>), Error> {
        let (tenant, transfer) = after.map_or((Uuid::nil(), 0), |(tenant, transfer)| (tenant.0, transfer));
        let sql = Sql::new(include_str!("sql/audit_snapshots.sql")).bind(tenant).bind(transfer).bind(rows);
        let rows: Vec<SnapshotRow> = self.patient_rows("audit_snapshots", sql).await?;
        let mut findings = Vec::new();
        for row in &rows {
            for (kind, expected, found) in [
                ("snapshot_deposited", row.expected_deposited, row.deposited),
                ("snapshot_available", row.expected_available, row.available),
                ("snapshot_held", row.expected_held, row.held),
                ("snapshot_charged", row.expected_charged, row.charged),
            ] {
                if expected != found {
                    findings.push(Finding {
                        kind: kind.to_owned(),
                        tenant_id: TenantId(row.tenant_id),
                        run_id: None,
                        expected_usd_micros: expected,
                        found_usd_micros: found,
                        detail: format!(
                            "the snapshot at transfer {} is not the one before it plus what was booked in between",
                            row.last_transfer_id
                        ),
                    });
                }
            }
        }
        Ok((findings, rows.last().map(|row| (TenantId(row.tenant_id), row.last_transfer_id))))
    }

    /// The books of `rows` tenants after `after`.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn audit_tenants(&self, after: Option<TenantId>, rows: i64) -> Result<Vec<Books>, Error> {
        let sql = Sql::new(include_str!("sql/audit_tenants.sql"))
            .bind(after.map_or(Uuid::nil(), |tenant| tenant.0))
            .bind(rows);
        self.patient_rows("audit_tenants", sql).await
    }

    /// Where the usage that is rolled up differs from the ledger, for the tenants from `first` to `last`.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn audit_usage(&self, first: TenantId, last: TenantId) -> Result<Vec<Finding>, Error> {
        let sql = Sql::new(include_str!("sql/audit_usage.sql")).bind(first.0).bind(last.0);
        let rows: Vec<FindingRow> = self.patient_rows("audit_usage", sql).await?;
        Ok(rows.into_iter().map(Finding::from).collect())
    }

    /// Where what a limited key has spent differs from its runs, for the tenants from `first` to `last`.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn audit_keys(&self, first: TenantId, last: TenantId) -> Result<Vec<Finding>, Error> {
        let sql = Sql::new(include_str!("sql/audit_keys.sql")).bind(first.0).bind(last.0);
        let rows: Vec<FindingRow> = self.patient_rows("audit_keys", sql).await?;
        Ok(rows.into_iter().map(Finding::from).collect())
    }

    /// One tenant's books. Two that are equal say that none of its transfers was committed in between.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn audit_tenant(&self, tenant_id: TenantId) -> Result<Option<Books>, Error> {
        let before = tenant_id.0.as_u128().checked_sub(1).map(|id| TenantId(Uuid::from_u128(id)));
        let books = self.audit_tenants(before, 1).await?.into_iter().next();
        Ok(books.filter(|books| books.tenant_id == tenant_id.0))
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
        let rows: Vec<Row> = self.patient_rows("completed", sql).await?;
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
