//! What is due: the scans that the reaper repeats. Each is bounded and goes on after the last row
//! that it showed, so that rows which cannot be helped never hide those behind them.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::{
    QueryableByName,
    sql_types::{BigInt, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use uuid::Uuid;

use super::{
    Error, Guard, Store,
    row::{RunRow, run_columns},
    runs::micros,
    sql::Sql,
};
use crate::domain::{
    id::{RunId, TenantId, TraceId},
    money::UsdMicros,
    run::{Claimed, Run, RunState},
};

/// A run whose lease has run out.
#[derive(Clone, Debug)]
pub struct DueLease {
    /// The run.
    pub run_id: RunId,
    /// Its buyer.
    pub tenant_id: TenantId,
    /// Its trace.
    pub trace_id: TraceId,
    /// How often it has been taken.
    pub attempts: i32,
    /// What it pays at least, where the policy says so.
    pub minimum_fee: UsdMicros,
    /// Whether its buyer wishes it to stop.
    pub cancel_requested: bool,
    /// What was seen: version, lease and its expiry.
    pub guard: Guard,
}

/// A run whose claim is stale.
#[derive(Debug)]
pub struct DueClaim {
    /// The claim, read back.
    pub claimed: Claimed,
    /// How often it has been taken.
    pub attempts: i32,
    /// What it pays at least, where the policy says so.
    pub minimum_fee: UsdMicros,
    /// Whether its buyer wishes it to stop.
    pub cancel_requested: bool,
}

/// A run whose message is to be sent (again).
#[derive(Clone, Debug)]
pub struct DueSend {
    /// The run.
    pub run_id: RunId,
    /// Its buyer.
    pub tenant_id: TenantId,
    /// What was bought.
    pub pack_type: String,
    /// Its trace.
    pub trace_id: TraceId,
    /// When it is due again, unless a worker takes it.
    pub next_send_at: DateTime<Utc>,
}

/// A run that waited too long.
#[derive(Clone, Debug)]
pub struct DueExpiry {
    /// The run.
    pub run_id: RunId,
    /// Its buyer.
    pub tenant_id: TenantId,
    /// Its trace.
    pub trace_id: TraceId,
    /// Since when it waits.
    pub created_at: DateTime<Utc>,
    /// What was seen.
    pub guard: Guard,
}

/// A run past its retention.
#[derive(Clone, Debug)]
pub struct DuePurge {
    /// The run.
    pub run_id: RunId,
    /// Its buyer.
    pub tenant_id: TenantId,
    /// Its trace.
    pub trace_id: TraceId,
    /// Since when it is past.
    pub retention_until: DateTime<Utc>,
}

#[derive(QueryableByName)]
struct SendRow {
    #[diesel(sql_type = SqlUuid)]
    run_id: Uuid,
    #[diesel(sql_type = SqlUuid)]
    tenant_id: Uuid,
    #[diesel(sql_type = Text)]
    pack_type: String,
    #[diesel(sql_type = Text)]
    trace_id: String,
    #[diesel(sql_type = Timestamptz)]
    at: DateTime<Utc>,
}

/// Runs whose rows can be read. One that cannot is for a person; it must not hide those behind it.
fn readable(rows: Vec<RunRow>) -> impl Iterator<Item = Run> {
    rows.into_iter().filter_map(|row| {
        Run::try_from(row)
            .inspect_err(|error| tracing::error!(severity = "CRITICAL", alert_channel = "money", %error, "a row cannot be read"))
            .ok()
    })
}

fn trace(text: &str, run_id: Uuid) -> Result<TraceId, Error> {
    text.parse().map_err(|bad| Error::Corrupt { table: "runs", detail: format!("run {run_id}: {bad}") })
}

impl Store {
    /// Runs whose lease has run out, oldest first, after the one that `after` names.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn due_leases(
        &self,
        after: Option<(DateTime<Utc>, RunId)>,
        limit: i64,
    ) -> Result<Vec<DueLease>, Error> {
        const TEXT: &str = concat!(
            "-- due_leases\nSELECT ",
            run_columns!(),
            " FROM runs AS run WHERE run.status = 'PROCESSING' AND run.finalize_stage IS NULL \
             AND run.lease_expires_at <= statement_timestamp() + $1::bigint * interval '1 microsecond' \
             AND ($2::timestamptz IS NULL OR (run.lease_expires_at, run.run_id) > ($2::timestamptz, $3::uuid)) \
             ORDER BY run.lease_expires_at, run.run_id LIMIT $4::bigint"
        );
        let sql = Sql::new(TEXT)
            .bind(self.offset())
            .bind(after.map(|(at, _)| at))
            .bind(after.map(|(_, run)| run.0))
            .bind(limit);
        let rows: Vec<RunRow> = self.rows("due_leases", sql).await?;
        let mut due = Vec::with_capacity(rows.len());
        for run in readable(rows) {
            if let RunState::Processing { lease } = run.state {
                due.push(DueLease {
                    run_id: run.run_id,
                    tenant_id: run.tenant_id,
                    trace_id: run.trace_id,
                    attempts: run.attempts,
                    minimum_fee: run.minimum_fee,
                    cancel_requested: run.cancel_requested,
                    guard: Guard {
                        version: run.version,
                        lease_token: Some(lease.token),
                        lease_expires_at: Some(lease.expires_at),
                        ..Guard::default()
                    },
                });
            }
        }
        Ok(due)
    }

    /// Claims older than `age`, oldest first, after the one that `after` names.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn due_claims(
        &self,
        age: Duration,
        after: Option<(DateTime<Utc>, RunId)>,
        limit: i64,
    ) -> Result<Vec<DueClaim>, Error> {
        const TEXT: &str = concat!(
            "-- due_claims\nSELECT ",
            run_columns!(),
            " FROM runs AS run WHERE run.status = 'PROCESSING' AND run.finalize_stage = 'CLAIMED' \
             AND run.money_state = 'RESERVED' \
             AND run.claimed_at <= statement_timestamp() + ($1::bigint - $2::bigint) * interval '1 microsecond' \
             AND ($3::timestamptz IS NULL OR (run.claimed_at, run.run_id) > ($3::timestamptz, $4::uuid)) \
             ORDER BY run.claimed_at, run.run_id LIMIT $5::bigint"
        );
        let sql = Sql::new(TEXT)
            .bind(self.offset())
            .bind(micros(age))
            .bind(after.map(|(at, _)| at))
            .bind(after.map(|(_, run)| run.0))
            .bind(limit);
        let rows: Vec<RunRow> = self.rows("due_claims", sql).await?;
        let mut due = Vec::with_capacity(rows.len());
        for run in readable(rows) {
            if let RunState::Claimed { claim } = run.state {
                due.push(DueClaim {
                    attempts: run.attempts,
                    minimum_fee: run.minimum_fee,
                    cancel_requested: run.cancel_requested,
                    claimed: Claimed::won(
                        run.run_id,
                        run.tenant_id,
                        run.trace_id,
                        run.reserved,
                        run.version,
                        claim,
                    ),
                });
            }
        }
        Ok(due)
    }

    /// Waiting runs whose message is due, marked as being sent: due again after `resend_after`, unless
    /// [`Store::put_off_send`] puts that off. `starving` says that the queue is empty: then every run that
    /// has waited for `resend_after` is due, whatever was put off.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn due_sends(
        &self,
        resend_after: Duration,
        starving: bool,
        limit: i64,
    ) -> Result<Vec<DueSend>, Error> {
        let sql = Sql::new(include_str!("sql/due_sends.sql"))
            .bind(self.offset())
            .bind(i32::from(starving))
            .bind(micros(resend_after))
            .bind(limit);
        let rows: Vec<SendRow> = self.rows("due_sends", sql).await?;
        rows.into_iter()
            .map(|row| {
                Ok(DueSend {
                    trace_id: trace(&row.trace_id, row.run_id)?,
                    run_id: RunId(row.run_id),
                    tenant_id: TenantId(row.tenant_id),
                    pack_type: row.pack_type,
                    next_send_at: row.at,
                })
            })
            .collect()
    }

    /// Puts off the next sending of a message that has been sent, unless something else has become of its
    /// run: by `resend_after` or as long as the run has waited, whichever is more, at most an hour.
    ///
    /// # Errors
    /// [`Error`]; it is sent again sooner.
    pub async fn put_off_send(&self, due: &DueSend, resend_after: Duration) -> Result<(), Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = SqlUuid)]
            #[expect(dead_code, reason = "a row must have a column")]
            run_id: Uuid,
        }
        let sql = Sql::new(
            "-- put_off_send\nUPDATE runs AS run SET next_send_at = now.at + least(interval '1 hour', \
                greatest(now.at - run.created_at, $1::bigint * interval '1 microsecond')) \
             FROM (SELECT statement_timestamp() + $2::bigint * interval '1 microsecond' AS at) AS now \
             WHERE run.run_id = $3::uuid AND run.status = 'QUEUED' AND run.next_send_at = $4::timestamptz \
             RETURNING run.run_id",
        )
        .bind(micros(resend_after))
        .bind(self.offset())
        .bind(due.run_id.0)
        .bind(Some(due.next_send_at));
        self.row::<Row>("put_off_send", sql).await.map(drop)
    }

    /// Runs that have waited in the queue for longer than `ttl`, oldest first, after the one that
    /// `after` names.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn due_expiries(
        &self,
        ttl: Duration,
        after: Option<(DateTime<Utc>, RunId)>,
        limit: i64,
    ) -> Result<Vec<DueExpiry>, Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = SqlUuid)]
            run_id: Uuid,
            #[diesel(sql_type = SqlUuid)]
            tenant_id: Uuid,
            #[diesel(sql_type = Text)]
            trace_id: String,
            #[diesel(sql_type = BigInt)]
            version: i64,
            #[diesel(sql_type = Timestamptz)]
            created_at: DateTime<Utc>,
        }
        let sql = Sql::new(
            "-- due_expiries\nSELECT run_id, tenant_id, trace_id, version, created_at FROM runs WHERE status = 'QUEUED' \
             AND created_at <= statement_timestamp() + ($1::bigint - $2::bigint) * interval '1 microsecond' \
             AND ($3::timestamptz IS NULL OR (created_at, run_id) > ($3::timestamptz, $4::uuid)) \
             ORDER BY created_at, run_id LIMIT $5::bigint",
        )
        .bind(self.offset())
        .bind(micros(ttl))
        .bind(after.map(|(at, _)| at))
        .bind(after.map(|(_, run)| run.0))
        .bind(limit);
        let rows: Vec<Row> = self.rows("due_expiries", sql).await?;
        rows.into_iter()
            .map(|row| {
                Ok(DueExpiry {
                    trace_id: trace(&row.trace_id, row.run_id)?,
                    run_id: RunId(row.run_id),
                    tenant_id: TenantId(row.tenant_id),
                    created_at: row.created_at,
                    guard: Guard { version: row.version, ..Guard::default() },
                })
            })
            .collect()
    }

    /// Ended runs past their retention whose objects and inputs are still kept, oldest first, after
    /// the one that `after` names.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn due_purges(
        &self,
        after: Option<(DateTime<Utc>, RunId)>,
        limit: i64,
    ) -> Result<Vec<DuePurge>, Error> {
        let sql = Sql::new(
            "-- due_purges\nSELECT run_id, tenant_id, pack_type, trace_id, retention_until AS at FROM runs \
             WHERE retention_until IS NOT NULL AND purged_at IS NULL \
             AND retention_until <= statement_timestamp() + $1::bigint * interval '1 microsecond' \
             AND ($2::timestamptz IS NULL OR (retention_until, run_id) > ($2::timestamptz, $3::uuid)) \
             ORDER BY retention_until, run_id LIMIT $4::bigint",
        )
        .bind(self.offset())
        .bind(after.map(|(at, _)| at))
        .bind(after.map(|(_, run)| run.0))
        .bind(limit);
        let rows: Vec<SendRow> = self.rows("due_purges", sql).await?;
        rows.into_iter()
            .map(|row| {
                Ok(DuePurge {
                    trace_id: trace(&row.trace_id, row.run_id)?,
                    run_id: RunId(row.run_id),
                    tenant_id: TenantId(row.tenant_id),
                    retention_until: row.at,
                })
            })
            .collect()
    }

    /// Forgets a run's inputs and notes; what it was, cost and came to stays. Call it after its
    /// objects are gone.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn mark_purged(&self, run_id: RunId) -> Result<bool, Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Nullable<Timestamptz>)]
            #[expect(dead_code, reason = "a row must have a column")]
            purged_at: Option<DateTime<Utc>>,
        }
        let sql = Sql::new(
            "-- mark_purged\nUPDATE runs SET purged_at = statement_timestamp() + $1::bigint * interval '1 microsecond', \
                inputs = NULL, metadata = '{}' \
             WHERE run_id = $2::uuid AND purged_at IS NULL \
             AND retention_until <= statement_timestamp() + $1::bigint * interval '1 microsecond' RETURNING purged_at",
        )
        .bind(self.offset())
        .bind(run_id.0);
        Ok(self.row::<Row>("mark_purged", sql).await?.is_some())
    }

    /// The open runs among `candidates`' tenant, for holding the gate's reservations against: every
    /// open run, and whether it is older than `grace`.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn open_runs(&self, tenant_id: TenantId, grace: Duration) -> Result<Vec<(RunId, bool)>, Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = SqlUuid)]
            run_id: Uuid,
            #[diesel(sql_type = Integer)]
            settled_in: i32,
        }
        let sql = Sql::new(
            "-- open_runs\nSELECT run_id, (created_at <= statement_timestamp() \
                + ($1::bigint - $2::bigint) * interval '1 microsecond')::integer AS settled_in \
             FROM runs WHERE tenant_id = $3::uuid AND status IN ('QUEUED', 'PROCESSING')",
        )
        .bind(self.offset())
        .bind(micros(grace))
        .bind(tenant_id.0);
        let rows: Vec<Row> = self.rows("open_runs", sql).await?;
        Ok(rows.into_iter().map(|row| (RunId(row.run_id), row.settled_in != 0)).collect())
    }
}
