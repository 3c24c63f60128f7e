//! Runs: made, taken, renewed, claimed, ended. Every change is a compare-and-set.
//!
//! Statements that look runs up by `run_id` hold their other conditions with `IS NOT DISTINCT FROM`, which
//! no index serves: on a table without statistics (a new deployment's) the planner would else find the
//! scan of a partial index, or of all of a tenant's runs, as cheap as the primary key.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::{
    QueryableByName,
    sql_types::{BigInt, Integer, Json, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use uuid::Uuid;

use super::{
    Error, Store,
    row::{RunRow, run_columns},
    sql::Sql,
};
use crate::domain::{
    id::{FinalizeToken, KeyId, LeaseToken, RunId, TenantId, TraceId},
    idempotency::{IdempotencyKey, PayloadHash},
    money::UsdMicros,
    run::{Cas, Claim, Claimed, Leased, Reason, Run, Settled},
};

/// What a submit writes down.
#[derive(Clone, Debug)]
pub struct NewRun {
    /// Chosen at the gate.
    pub run_id: RunId,
    /// The buyer.
    pub tenant_id: TenantId,
    /// The key that it came in under.
    pub key_id: KeyId,
    /// What is bought.
    pub pack_type: String,
    /// The buyer's name for the submit.
    pub idempotency_key: IdempotencyKey,
    /// The request's hash.
    pub payload: PayloadHash,
    /// What to do.
    pub inputs: serde_json::Value,
    /// The buyer's own notes.
    pub metadata: serde_json::Value,
    /// The trace.
    pub trace_id: TraceId,
    /// The hold.
    pub reserved: UsdMicros,
    /// The least that it pays once worked on.
    pub minimum_fee: UsdMicros,
    /// How long the work may take.
    pub timebox_secs: i32,
}

/// What became of a submit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// The run and its hold are in the books.
    Inserted {
        /// By the database's clock.
        created_at: DateTime<Utc>,
    },
    /// There is a run with this key (or id) already; nothing was written.
    Exists,
    /// The epoch has ended or the tenant is suspended; nothing was written.
    NotAdmitted,
}

/// What a caller saw of a run when it decided. A compare-and-set holds all of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Guard {
    /// The run's version.
    pub version: i64,
    /// Its lease, where it had one.
    pub lease_token: Option<LeaseToken>,
    /// Its claim, where it had one.
    pub finalize_token: Option<FinalizeToken>,
    /// Whether a person is to decide; such a run is ended by nobody else.
    pub awaits_audit: bool,
    /// The lease's expiry; named by whoever says that it has passed.
    pub lease_expires_at: Option<DateTime<Utc>>,
}

impl Guard {
    /// The guard of a worker that holds the lease.
    pub fn of_lease(run: &Leased) -> Self {
        Self { version: run.version, lease_token: Some(run.token), ..Self::default() }
    }

    /// The guard of whoever holds the claim.
    pub fn of_claim(run: &Claimed) -> Self {
        Self { version: run.version(), finalize_token: Some(run.claim().token), ..Self::default() }
    }

    fn stage(&self) -> Option<String> {
        self.finalize_token.map(|_| "CLAIMED".to_owned())
    }
}

/// How a run ends.
#[derive(Clone, Debug)]
pub enum Ending {
    /// With a result, at this cost.
    Completed(UsdMicros),
    /// Without one, at this cost.
    Failed(UsdMicros, Reason),
    /// Never taken; free.
    Expired(Reason),
    /// Stopped at its buyer's wish, at this cost.
    Cancelled(UsdMicros),
}

#[derive(QueryableByName)]
struct IdRow {
    #[diesel(sql_type = SqlUuid)]
    run_id: Uuid,
}

pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

impl Store {
    /// Writes a run and its hold, if its budget's epoch is still `epoch`. The reaper sends its
    /// message (again) after `resend_after`, unless a worker takes it first.
    ///
    /// # Errors
    /// [`Error`]; on [`Error::Unavailable`] the run may exist.
    pub async fn submit(&self, run: &NewRun, epoch: i64, resend_after: Duration) -> Result<Submitted, Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = BigInt)]
            admitted: i64,
            #[diesel(sql_type = Nullable<Timestamptz>)]
            created_at: Option<DateTime<Utc>>,
        }
        let sql = Sql::new(include_str!("sql/submit_run.sql"))
            .bind(run.tenant_id.0)
            .bind(epoch)
            .bind(run.run_id.0)
            .bind(run.key_id.0)
            .bind(run.pack_type.as_str())
            .bind(run.idempotency_key.as_str())
            .bind(run.payload.0.to_vec())
            .bind(run.inputs.clone())
            .bind(run.metadata.clone())
            .bind(run.trace_id.to_string())
            .bind(run.reserved.get())
            .bind(run.minimum_fee.get())
            .bind(run.timebox_secs)
            .bind(micros(resend_after))
            .bind(self.offset());
        let row: Option<Row> = self.row("submit_run", sql).await?;
        Ok(match row {
            Some(Row { created_at: Some(created_at), .. }) => Submitted::Inserted { created_at },
            Some(Row { admitted: 1.., .. }) => Submitted::Exists,
            _ => Submitted::NotAdmitted,
        })
    }

    /// A tenant's run by its idempotency key.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn find_by_key(&self, tenant_id: TenantId, key: &IdempotencyKey) -> Result<Option<Run>, Error> {
        const TEXT: &str = concat!(
            "-- find_by_key\nSELECT ",
            run_columns!(),
            " FROM runs AS run WHERE run.tenant_id = $1::uuid AND run.idempotency_key = $2::text"
        );
        self.run("find_by_key", Sql::new(TEXT).bind(tenant_id.0).bind(key.as_str())).await
    }

    /// A run, if it is this tenant's. Another tenant's is as absent as one that never was.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn find_owned(&self, tenant_id: TenantId, run_id: RunId) -> Result<Option<Run>, Error> {
        const TEXT: &str = concat!(
            "-- find_owned\nSELECT ",
            run_columns!(),
            " FROM runs AS run WHERE run.tenant_id IS NOT DISTINCT FROM $1::uuid AND run.run_id = $2::uuid"
        );
        self.run("find_owned", Sql::new(TEXT).bind(tenant_id.0).bind(run_id.0)).await
    }

    /// A run, whoever it belongs to. For operators and tests.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn find_run(&self, run_id: RunId) -> Result<Option<Run>, Error> {
        const TEXT: &str =
            concat!("-- find_run\nSELECT ", run_columns!(), " FROM runs AS run WHERE run.run_id = $1::uuid");
        self.run("find_run", Sql::new(TEXT).bind(run_id.0)).await
    }

    async fn run(&self, op: &'static str, sql: Sql) -> Result<Option<Run>, Error> {
        let row: Option<RunRow> = self.row(op, sql).await?;
        row.map(Run::try_from).transpose()
    }

    /// Leases every one of `runs` that waits and whose tenant may work. Those that are not in the
    /// answer are somebody else's, done, unknown, or not allowed to run now.
    ///
    /// # Errors
    /// [`Error`]; on [`Error::Unavailable`] some may be leased to nobody until their lease runs out.
    pub async fn take(&self, runs: &[RunId], lease: Duration) -> Result<Vec<Leased>, Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = SqlUuid)]
            run_id: Uuid,
            #[diesel(sql_type = SqlUuid)]
            tenant_id: Uuid,
            #[diesel(sql_type = Text)]
            pack_type: String,
            #[diesel(sql_type = Nullable<Json>)]
            inputs: Option<serde_json::Value>,
            #[diesel(sql_type = BigInt)]
            reserved_usd_micros: i64,
            #[diesel(sql_type = BigInt)]
            minimum_fee_usd_micros: i64,
            #[diesel(sql_type = Integer)]
            timebox_secs: i32,
            #[diesel(sql_type = Integer)]
            attempts: i32,
            #[diesel(sql_type = Text)]
            trace_id: String,
            #[diesel(sql_type = BigInt)]
            version: i64,
            #[diesel(sql_type = SqlUuid)]
            lease_token: Uuid,
        }
        let ids = runs.iter().map(|run| run.0).collect::<Vec<_>>();
        let sql =
            Sql::new(include_str!("sql/take_runs.sql")).bind(ids).bind(micros(lease)).bind(self.offset());
        let rows: Vec<Row> = self.rows("take_runs", sql).await?;
        rows.into_iter()
            .map(|row| {
                let corrupt = |what: &str| Error::Corrupt {
                    table: "runs",
                    detail: format!("run {}: {what}", row.run_id),
                };
                let amount = |micros| UsdMicros::new(micros).map_err(|bad| corrupt(&bad.to_string()));
                Ok(Leased {
                    run_id: RunId(row.run_id),
                    tenant_id: TenantId(row.tenant_id),
                    reserved: amount(row.reserved_usd_micros)?,
                    minimum_fee: amount(row.minimum_fee_usd_micros)?,
                    timebox_secs: row.timebox_secs,
                    attempt: row.attempts,
                    trace_id: row.trace_id.parse().ok().ok_or_else(|| corrupt("no trace id"))?,
                    version: row.version,
                    token: LeaseToken(row.lease_token),
                    inputs: row.inputs.ok_or_else(|| corrupt("no inputs"))?,
                    pack_type: row.pack_type,
                })
            })
            .collect()
    }

    /// Which of `runs` are QUEUED now, of tenants that may work: those that a worker failed to take
    /// only because another was looking at them.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn still_waiting(&self, runs: &[RunId]) -> Result<Vec<RunId>, Error> {
        let sql = Sql::new(
            "-- still_waiting\nSELECT run.run_id FROM runs AS run JOIN tenants AS tenant USING (tenant_id) \
             WHERE run.run_id = ANY($1::uuid[]) AND run.status IS NOT DISTINCT FROM 'QUEUED' \
             AND tenant.status = 'ACTIVE'",
        )
        .bind(runs.iter().map(|run| run.0).collect::<Vec<_>>());
        let rows: Vec<IdRow> = self.rows("still_waiting", sql).await?;
        Ok(rows.into_iter().map(|row| RunId(row.run_id)).collect())
    }

    /// Which of `runs` exist at all.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn known(&self, runs: &[RunId]) -> Result<Vec<RunId>, Error> {
        let sql = Sql::new("-- known\nSELECT run_id FROM runs WHERE run_id = ANY($1::uuid[])")
            .bind(runs.iter().map(|run| run.0).collect::<Vec<_>>());
        let rows: Vec<IdRow> = self.rows("known", sql).await?;
        Ok(rows.into_iter().map(|row| RunId(row.run_id)).collect())
    }

    /// Renews all of a worker's leases. Returns those that are still its own.
    ///
    /// # Errors
    /// [`Error`]; on [`Error::Unavailable`] they may be renewed.
    pub async fn beat(&self, leases: &[(RunId, LeaseToken)], lease: Duration) -> Result<Vec<RunId>, Error> {
        let sql = Sql::new(include_str!("sql/beat.sql"))
            .bind(micros(lease))
            .bind(self.offset())
            .bind(leases.iter().map(|(run, _)| run.0).collect::<Vec<_>>())
            .bind(leases.iter().map(|(_, token)| token.0).collect::<Vec<_>>());
        let rows: Vec<IdRow> = self.rows("beat", sql).await?;
        Ok(rows.into_iter().map(|row| RunId(row.run_id)).collect())
    }

    /// Claims the right to finish a run with the object at `result_key`, whose bytes hash to
    /// `sha256` and whose receipt says `cost`.
    ///
    /// # Errors
    /// [`Error`]; on [`Error::Unavailable`] the claim may stand, and a reconciler ends it.
    pub async fn claim(
        &self,
        run: &Leased,
        result_key: String,
        sha256: String,
        cost: UsdMicros,
    ) -> Result<Cas<Claimed>, Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Timestamptz)]
            claimed_at: DateTime<Utc>,
            #[diesel(sql_type = BigInt)]
            version: i64,
        }
        let token = FinalizeToken::new();
        let sql = Sql::new(include_str!("sql/claim_run.sql"))
            .bind(token.0)
            .bind(result_key.as_str())
            .bind(sha256.as_str())
            .bind(cost.get())
            .bind(self.offset())
            .bind(run.run_id.0)
            .bind(run.version)
            .bind(run.token.0);
        let row: Option<Row> = self.row("claim_run", sql).await?;
        Ok(row.map_or(Cas::Lost, |row| {
            let claim = Claim { token, claimed_at: row.claimed_at, result_key, cost, sha256 };
            Cas::Won(Claimed::won(run.run_id, run.tenant_id, run.trace_id, run.reserved, row.version, claim))
        }))
    }

    /// Ends a run and its hold, in the run and in the ledger at once.
    ///
    /// # Errors
    /// [`Error`]; on [`Error::Unavailable`] it may have ended.
    pub async fn end(
        &self,
        run_id: RunId,
        tenant_id: TenantId,
        trace_id: TraceId,
        guard: Guard,
        ending: Ending,
    ) -> Result<Cas<Settled>, Error> {
        let (status, charge, reason) = match ending {
            Ending::Completed(charge) => ("COMPLETED", charge, None),
            Ending::Failed(charge, reason) => ("FAILED", charge, Some(reason)),
            Ending::Expired(reason) => ("EXPIRED", UsdMicros::ZERO, Some(reason)),
            Ending::Cancelled(charge) => ("CANCELLED", charge, None),
        };
        let (code, detail) = reason.map(|reason| (reason.code, reason.detail)).unzip();
        let sql = Sql::new(include_str!("sql/end_run.sql"))
            .bind(tenant_id.0)
            .bind(status)
            .bind(charge.get())
            .bind(code)
            .bind(detail)
            .bind(self.offset())
            .bind(run_id.0)
            .bind(guard.version)
            .bind(if guard.awaits_audit { "AUDIT_REQUIRED" } else { "RESERVED" })
            .bind(guard.lease_token.map(|token| token.0))
            .bind(guard.stage())
            .bind(guard.finalize_token.map(|token| token.0))
            .bind(guard.lease_expires_at);
        let row: Option<IdRow> = self.row("end_run", sql).await?;
        Ok(row.map_or(Cas::Lost, |_| Cas::Won(Settled::won(run_id, tenant_id, trace_id, charge))))
    }

    /// Puts a run back into the queue for another attempt, its message due at once. A handed-back
    /// attempt does not count.
    ///
    /// # Errors
    /// [`Error`]; on [`Error::Unavailable`] it may be back.
    pub async fn requeue(&self, run_id: RunId, guard: Guard, handed_back: bool) -> Result<Cas<()>, Error> {
        let sql = Sql::new(include_str!("sql/requeue_run.sql"))
            .bind(i32::from(handed_back))
            .bind(self.offset())
            .bind(run_id.0)
            .bind(guard.version)
            .bind(guard.lease_token.map(|token| token.0))
            .bind(guard.stage())
            .bind(guard.finalize_token.map(|token| token.0))
            .bind(guard.lease_expires_at);
        let row: Option<IdRow> = self.row("requeue_run", sql).await?;
        Ok(row.map_or(Cas::Lost, |_| Cas::Won(())))
    }

    /// Writes down that the buyer wishes a run in work to stop. Its version stays: what its worker saw of it
    /// still holds, and the worker is who ends it.
    ///
    /// # Errors
    /// [`Error`]; it may be written.
    pub async fn request_cancel(&self, tenant_id: TenantId, run_id: RunId) -> Result<Cas<()>, Error> {
        let sql = Sql::new(
            "-- request_cancel\nUPDATE runs SET cancel_requested_at = coalesce(cancel_requested_at, \
                statement_timestamp() + $1::bigint * interval '1 microsecond') \
             WHERE run_id = $2::uuid AND tenant_id IS NOT DISTINCT FROM $3::uuid \
                AND status IS NOT DISTINCT FROM 'PROCESSING' AND money_state = 'RESERVED' RETURNING run_id",
        )
        .bind(self.offset())
        .bind(run_id.0)
        .bind(tenant_id.0);
        let row: Option<IdRow> = self.row("request_cancel", sql).await?;
        Ok(row.map_or(Cas::Lost, |_| Cas::Won(())))
    }

    /// Which of a worker's runs are to stop at their buyers' wish.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn to_cancel(&self, runs: &[RunId]) -> Result<Vec<RunId>, Error> {
        let sql = Sql::new(
            "-- to_cancel\nSELECT run_id FROM runs WHERE run_id = ANY($1::uuid[]) AND cancel_requested_at IS NOT NULL",
        )
        .bind(runs.iter().map(|run| run.0).collect::<Vec<_>>());
        let rows: Vec<IdRow> = self.rows("to_cancel", sql).await?;
        Ok(rows.into_iter().map(|row| RunId(row.run_id)).collect())
    }

    /// Parks a claimed run whose object contradicts the books.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn require_audit(&self, run: &Claimed, reason: &str) -> Result<Cas<()>, Error> {
        let sql = Sql::new(include_str!("sql/require_audit.sql"))
            .bind(reason)
            .bind(run.run_id().0)
            .bind(run.version())
            .bind(run.claim().token.0);
        let row: Option<IdRow> = self.row("require_audit", sql).await?;
        Ok(row.map_or(Cas::Lost, |_| Cas::Won(())))
    }

    /// Makes every waiting run's message due now. For a deployment whose queue is known to be empty.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn resend_all(&self) -> Result<(), Error> {
        let sql = Sql::new(
            "-- resend_all\nUPDATE runs SET next_send_at = statement_timestamp() + $1::bigint * interval '1 microsecond' \
             WHERE status = 'QUEUED' RETURNING run_id",
        )
        .bind(self.offset());
        self.rows::<IdRow>("resend_all", sql).await.map(drop)
    }

    /// Those of `runs`, whoever's they are, that have ended.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn ended_among(&self, runs: &[RunId]) -> Result<Vec<RunId>, Error> {
        let sql = Sql::new(
            "-- ended_among\nSELECT run_id FROM runs WHERE run_id = ANY($1::uuid[]) AND actual_cost_usd_micros IS NOT NULL",
        )
        .bind(runs.iter().map(|run| run.0).collect::<Vec<_>>());
        let rows: Vec<IdRow> = self.rows("ended_among", sql).await?;
        Ok(rows.into_iter().map(|row| RunId(row.run_id)).collect())
    }

    /// Those of `runs` that there are, each with the ledger's word on it if it has ended.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn outcomes(
        &self,
        tenant_id: TenantId,
        runs: &[RunId],
    ) -> Result<Vec<(RunId, Option<Settled>)>, Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = SqlUuid)]
            run_id: Uuid,
            #[diesel(sql_type = Text)]
            trace_id: String,
            #[diesel(sql_type = Nullable<BigInt>)]
            actual_cost_usd_micros: Option<i64>,
        }
        if runs.is_empty() {
            return Ok(Vec::new());
        }
        let sql = Sql::new(
            "-- outcomes\nSELECT run_id, trace_id, actual_cost_usd_micros FROM runs \
             WHERE tenant_id IS NOT DISTINCT FROM $1::uuid AND run_id = ANY($2::uuid[])",
        )
        .bind(tenant_id.0)
        .bind(runs.iter().map(|run| run.0).collect::<Vec<_>>());
        let rows: Vec<Row> = self.rows("outcomes", sql).await?;
        rows.into_iter()
            .map(|row| {
                let corrupt =
                    || Error::Corrupt { table: "runs", detail: format!("run {}: no legal end", row.run_id) };
                let run_id = RunId(row.run_id);
                let Some(charge) = row.actual_cost_usd_micros else { return Ok((run_id, None)) };
                let charge = UsdMicros::new(charge).ok().ok_or_else(corrupt)?;
                let trace_id = row.trace_id.parse().ok().ok_or_else(corrupt)?;
                Ok((run_id, Some(Settled::won(run_id, tenant_id, trace_id, charge))))
            })
            .collect()
    }

    /// The holds of a tenant's open runs, as the runs have them.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn open_holds(&self, tenant_id: TenantId) -> Result<Vec<(RunId, UsdMicros)>, Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = SqlUuid)]
            run_id: Uuid,
            #[diesel(sql_type = BigInt)]
            reserved_usd_micros: i64,
        }
        let sql = Sql::new(
            "-- open_holds_of\nSELECT run_id, reserved_usd_micros FROM runs \
             WHERE tenant_id = $1::uuid AND status IN ('QUEUED', 'PROCESSING')",
        )
        .bind(tenant_id.0);
        let rows: Vec<Row> = self.rows("open_holds_of", sql).await?;
        rows.into_iter()
            .map(|row| match UsdMicros::new(row.reserved_usd_micros) {
                Ok(amount) => Ok((RunId(row.run_id), amount)),
                Err(bad) => {
                    Err(Error::Corrupt { table: "runs", detail: format!("run {}: {bad}", row.run_id) })
                }
            })
            .collect()
    }
}
