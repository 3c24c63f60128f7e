//! Tenants and their plans.

use chrono::{DateTime, Utc};
use diesel::{
    QueryableByName,
    sql_types::{Array, BigInt, Bytea, Integer, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use serde_json::Value;
use uuid::Uuid;

use super::{Error, Store, sql::Sql};
use crate::domain::{
    id::TenantId,
    idempotency::{IdempotencyKey, PayloadHash},
    money::UsdMicros,
    plan::Plan,
};

/// A tenant, as operators see it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TenantRecord {
    /// Its id.
    pub tenant_id: TenantId,
    /// Its name; need not be unique.
    pub name: String,
    /// Its plan.
    pub plan: String,
    /// `ACTIVE` or `SUSPENDED`.
    pub status: String,
    /// Since when.
    pub created_at: DateTime<Utc>,
}

#[derive(QueryableByName)]
struct TenantRow {
    #[diesel(sql_type = SqlUuid)]
    tenant_id: Uuid,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    plan: String,
    #[diesel(sql_type = Text)]
    status: String,
    #[diesel(sql_type = Timestamptz)]
    created_at: DateTime<Utc>,
}

impl From<TenantRow> for TenantRecord {
    fn from(row: TenantRow) -> Self {
        Self {
            tenant_id: TenantId(row.tenant_id),
            name: row.name,
            plan: row.plan,
            status: row.status,
            created_at: row.created_at,
        }
    }
}

/// The columns of a plan, for joins.
macro_rules! plan_columns {
    () => {
        "plan.plan, plan.allowed_packs, plan.run_cost_max_usd_micros, plan.runs_per_minute, plan.polls_per_minute, \
         plan.concurrent_runs_max, plan.monthly_spend_max_usd_micros, plan.timebox_secs_max, plan.retention_days, \
         plan.pack_cost_max_usd_micros"
    };
}
pub(super) use plan_columns;

#[derive(QueryableByName)]
pub(super) struct PlanRow {
    #[diesel(sql_type = Text)]
    plan: String,
    #[diesel(sql_type = Nullable<Array<Text>>)]
    allowed_packs: Option<Vec<String>>,
    #[diesel(sql_type = BigInt)]
    run_cost_max_usd_micros: i64,
    #[diesel(sql_type = Integer)]
    runs_per_minute: i32,
    #[diesel(sql_type = Integer)]
    polls_per_minute: i32,
    #[diesel(sql_type = Integer)]
    concurrent_runs_max: i32,
    #[diesel(sql_type = BigInt)]
    monthly_spend_max_usd_micros: i64,
    #[diesel(sql_type = Integer)]
    timebox_secs_max: i32,
    #[diesel(sql_type = Integer)]
    retention_days: i32,
    #[diesel(sql_type = Jsonb)]
    pack_cost_max_usd_micros: Value,
}

impl TryFrom<PlanRow> for Plan {
    type Error = Error;

    fn try_from(row: PlanRow) -> Result<Self, Error> {
        let corrupt =
            |what: String| Error::Corrupt { table: "plans", detail: format!("plan {}: {what}", row.plan) };
        let amount = |micros| UsdMicros::new(micros).map_err(|bad| corrupt(bad.to_string()));
        let cap = |(pack, micros): (&String, &Value)| {
            let cap = micros.as_i64().and_then(|micros| UsdMicros::new(micros).ok());
            cap.map(|cap| (pack.clone(), cap))
                .ok_or_else(|| corrupt(format!("{micros} for {pack} is no amount")))
        };
        let caps = row.pack_cost_max_usd_micros.as_object();
        let caps = caps.ok_or_else(|| corrupt("its packs' limits are no object".to_owned()))?;
        Ok(Self {
            pack_cost_max: caps.iter().map(cap).collect::<Result<_, _>>()?,
            run_cost_max: amount(row.run_cost_max_usd_micros)?,
            monthly_spend_max: amount(row.monthly_spend_max_usd_micros)?,
            allowed_packs: row.allowed_packs,
            runs_per_minute: row.runs_per_minute,
            polls_per_minute: row.polls_per_minute,
            concurrent_runs_max: row.concurrent_runs_max,
            timebox_secs_max: row.timebox_secs_max,
            retention_days: row.retention_days,
            plan: row.plan,
        })
    }
}

macro_rules! tenants {
    ($rest:literal) => {
        concat!(
            "-- tenants\nSELECT tenant.tenant_id, tenant.name, coalesce(assigned.plan, '') AS plan, \
                tenant.status, tenant.created_at \
             FROM tenants AS tenant LEFT JOIN tenant_plans AS assigned \
                ON assigned.tenant_id = tenant.tenant_id AND assigned.ended_at IS NULL ",
            $rest
        )
    };
}

const TENANTS: &str = tenants!(
    "WHERE ($1::uuid IS NULL OR tenant.tenant_id = $1::uuid) AND ($2::text IS NULL OR tenant.name = $2::text) \
        AND ($3::uuid IS NULL OR tenant.tenant_id > $3::uuid) \
     ORDER BY tenant.tenant_id LIMIT $4::bigint"
);

impl Store {
    /// Makes a tenant on a plan, in one statement.
    ///
    /// # Errors
    /// [`Error::Refused`] by `tenant_plans_plan_fkey` for an unknown plan, or by `tenants_name_check`.
    pub async fn create_tenant(&self, name: &str, plan: &str) -> Result<TenantRecord, Error> {
        self.insert_tenant(name, plan, None).await
    }

    /// The same, once for each key; [`Store::find_creation`] tells of the first time.
    ///
    /// # Errors
    /// As [`Store::create_tenant`], and [`Error::Refused`] by `tenant_creations_pkey` where the key has made
    /// a tenant before.
    pub async fn create_tenant_once(
        &self,
        name: &str,
        plan: &str,
        key: &IdempotencyKey,
        payload: PayloadHash,
    ) -> Result<TenantRecord, Error> {
        self.insert_tenant(name, plan, Some((key, payload))).await
    }

    async fn insert_tenant(
        &self,
        name: &str,
        plan: &str,
        once: Option<(&IdempotencyKey, PayloadHash)>,
    ) -> Result<TenantRecord, Error> {
        let sql = Sql::new(
            "-- create_tenant\nWITH tenant AS ( \
                INSERT INTO tenants (tenant_id, name, created_at) \
                VALUES ($1::uuid, $2::text, statement_timestamp() + $3::bigint * interval '1 microsecond') \
                RETURNING tenant_id, name, status, created_at \
             ), assigned AS ( \
                INSERT INTO tenant_plans (tenant_id, plan, assigned_at) \
                SELECT tenant_id, $4::text, created_at FROM tenant RETURNING plan \
             ), creation AS ( \
                INSERT INTO tenant_creations (idempotency_key, payload_sha256, tenant_id) \
                SELECT $5::text, $6::bytea, tenant_id FROM tenant WHERE $5::text IS NOT NULL \
             ) SELECT tenant.tenant_id, tenant.name, assigned.plan, tenant.status, tenant.created_at \
             FROM tenant, assigned",
        )
        .bind(TenantId::new().0)
        .bind(name)
        .bind(self.offset())
        .bind(plan)
        .bind(once.map(|(key, _)| key.as_str().to_owned()))
        .bind(once.map_or_else(Vec::new, |(_, payload)| payload.0.to_vec()));
        let row: Option<TenantRow> = self.row("create_tenant", sql).await?;
        row.map(TenantRecord::from).ok_or_else(|| Error::Query(anyhow::anyhow!("no row")))
    }

    /// Which tenant a key has made, and of which request.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn find_creation(
        &self,
        key: &IdempotencyKey,
    ) -> Result<Option<(TenantId, PayloadHash)>, Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = SqlUuid)]
            tenant_id: Uuid,
            #[diesel(sql_type = Bytea)]
            payload_sha256: Vec<u8>,
        }
        let sql = Sql::new(
            "-- find_creation\nSELECT tenant_id, payload_sha256 FROM tenant_creations WHERE idempotency_key = $1::text",
        )
        .bind(key.as_str());
        let Some(row) = self.row::<Row>("find_creation", sql).await? else { return Ok(None) };
        let payload = row.payload_sha256.try_into().ok().map(PayloadHash);
        payload.map(|payload| Some((TenantId(row.tenant_id), payload))).ok_or_else(|| Error::Corrupt {
            table: "tenant_creations",
            detail: format!("of tenant {}: no hash of 32 bytes", row.tenant_id),
        })
    }

    /// The tenant of this id.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn find_tenant(&self, tenant_id: TenantId) -> Result<Option<TenantRecord>, Error> {
        let sql = Sql::new(TENANTS).bind(tenant_id.0).bind(None::<String>).bind(None::<Uuid>).bind(1_i64);
        Ok(self.row::<TenantRow>("tenants", sql).await?.map(TenantRecord::from))
    }

    /// Tenants of this name, two at most: enough to say that it is ambiguous.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn tenants_named(&self, name: &str) -> Result<Vec<TenantRecord>, Error> {
        let sql = Sql::new(TENANTS).bind(None::<Uuid>).bind(name).bind(None::<Uuid>).bind(2_i64);
        let rows: Vec<TenantRow> = self.rows("tenants", sql).await?;
        Ok(rows.into_iter().map(TenantRecord::from).collect())
    }

    /// Up to `limit` tenants in the order of their ids, after `after`.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn tenants(&self, after: Option<TenantId>, limit: i64) -> Result<Vec<TenantRecord>, Error> {
        let sql = Sql::new(TENANTS)
            .bind(None::<Uuid>)
            .bind(None::<String>)
            .bind(after.map(|tenant| tenant.0))
            .bind(limit);
        let rows: Vec<TenantRow> = self.rows("tenants", sql).await?;
        Ok(rows.into_iter().map(TenantRecord::from).collect())
    }

    /// Tenants in the order of their ids, the newest first, after `after`.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn list_tenants(
        &self,
        after: Option<TenantId>,
        limit: i64,
    ) -> Result<Vec<TenantRecord>, Error> {
        const TEXT: &str = tenants!(
            "WHERE tenant.tenant_id < coalesce($1::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff') \
             ORDER BY tenant.tenant_id DESC LIMIT $2::bigint"
        );
        let sql = Sql::new(TEXT).bind(after.map(|tenant| tenant.0)).bind(limit);
        let rows: Vec<TenantRow> = self.rows("list_tenants", sql).await?;
        Ok(rows.into_iter().map(TenantRecord::from).collect())
    }

    /// A tenant drawn by lot, if there are more than `many`.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn some_tenant(&self, many: i64) -> Result<Option<TenantId>, Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = SqlUuid)]
            tenant_id: Uuid,
        }
        let sql = Sql::new(
            "-- some_tenant\nSELECT tenant_id FROM tenants, (SELECT count(*) AS n FROM tenants) AS all_of_them \
             WHERE all_of_them.n > $1::bigint ORDER BY tenant_id \
             OFFSET floor(random() * (SELECT count(*) FROM tenants)) LIMIT 1",
        )
        .bind(many);
        Ok(self.row::<Row>("some_tenant", sql).await?.map(|row| TenantId(row.tenant_id)))
    }

    /// Suspends or resumes a tenant; `false` for no such tenant.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn set_suspended(&self, tenant_id: TenantId, suspended: bool) -> Result<bool, Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Text)]
            #[expect(dead_code, reason = "a row must have a column")]
            status: String,
        }
        let sql = Sql::new(
            "-- set_suspended\nUPDATE tenants SET status = $1::text WHERE tenant_id = $2::uuid RETURNING status",
        )
        .bind(if suspended { "SUSPENDED" } else { "ACTIVE" })
        .bind(tenant_id.0);
        Ok(self.row::<Row>("set_suspended", sql).await?.is_some())
    }

    /// All plans, by name.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn plans(&self) -> Result<Vec<Plan>, Error> {
        const TEXT: &str =
            concat!("-- plans\nSELECT ", plan_columns!(), " FROM plans AS plan ORDER BY plan.plan");
        let rows: Vec<PlanRow> = self.rows("plans", Sql::new(TEXT)).await?;
        rows.into_iter().map(Plan::try_from).collect()
    }

    /// The plan of this name.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn find_plan(&self, plan: &str) -> Result<Option<Plan>, Error> {
        const TEXT: &str = concat!(
            "-- find_plan\nSELECT ",
            plan_columns!(),
            " FROM plans AS plan WHERE plan.plan = $1::text"
        );
        let row: Option<PlanRow> = self.row("find_plan", Sql::new(TEXT).bind(plan)).await?;
        row.map(Plan::try_from).transpose()
    }

    /// Makes a plan, or makes the one of this name what this one is.
    ///
    /// # Errors
    /// [`Error::Refused`] by `plans_limits_check` or `plans_pack_cost_max_usd_micros_check`.
    pub async fn put_plan(&self, plan: &Plan) -> Result<(), Error> {
        const TEXT: &str = concat!(
            "-- put_plan\nINSERT INTO plans AS plan (plan, allowed_packs, run_cost_max_usd_micros, runs_per_minute, \
                polls_per_minute, concurrent_runs_max, monthly_spend_max_usd_micros, timebox_secs_max, \
                retention_days, pack_cost_max_usd_micros) \
             VALUES ($1::text, $2::text[], $3::bigint, $4::integer, $5::integer, $6::integer, $7::bigint, \
                $8::integer, $9::integer, $10::json::jsonb) \
             ON CONFLICT (plan) DO UPDATE SET allowed_packs = excluded.allowed_packs, \
                run_cost_max_usd_micros = excluded.run_cost_max_usd_micros, \
                runs_per_minute = excluded.runs_per_minute, polls_per_minute = excluded.polls_per_minute, \
                concurrent_runs_max = excluded.concurrent_runs_max, \
                monthly_spend_max_usd_micros = excluded.monthly_spend_max_usd_micros, \
                timebox_secs_max = excluded.timebox_secs_max, retention_days = excluded.retention_days, \
                pack_cost_max_usd_micros = excluded.pack_cost_max_usd_micros RETURNING ",
            plan_columns!()
        );
        let caps = plan.pack_cost_max.iter().map(|(pack, cap)| (pack.clone(), Value::from(cap.get())));
        let sql = Sql::new(TEXT)
            .bind(plan.plan.as_str())
            .bind(plan.allowed_packs.clone())
            .bind(plan.run_cost_max.get())
            .bind(plan.runs_per_minute)
            .bind(plan.polls_per_minute)
            .bind(plan.concurrent_runs_max)
            .bind(plan.monthly_spend_max.get())
            .bind(plan.timebox_secs_max)
            .bind(plan.retention_days)
            .bind(Value::Object(caps.collect()));
        self.row::<PlanRow>("put_plan", sql).await.map(drop)
    }

    /// Ends the tenant's plan and begins another, in one statement: there is never a second active
    /// one, and never none.
    ///
    /// # Errors
    /// [`Error::Refused`] by `tenant_plans_plan_fkey` for an unknown plan, by
    /// `tenant_plans_tenant_id_fkey` for an unknown tenant, by `tenant_plans_tenant_id_active_key` or
    /// `tenant_plans_pkey` when another assignment came between.
    pub async fn assign_plan(&self, tenant_id: TenantId, plan: &str) -> Result<(), Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = Text)]
            #[expect(dead_code, reason = "a row must have a column")]
            plan: String,
        }
        // A unique index is checked row by row, so the old row must have ended before the new one
        // begins: an update first, and an insert that reads its result.
        let sql = Sql::new(
            "-- assign_plan\nWITH now AS ( \
                SELECT statement_timestamp() + $1::bigint * interval '1 microsecond' AS at \
             ), ended AS ( \
                UPDATE tenant_plans SET ended_at = now.at FROM now \
                WHERE tenant_id = $2::uuid AND ended_at IS NULL RETURNING tenant_id \
             ) INSERT INTO tenant_plans (tenant_id, plan, assigned_at) \
             SELECT $2::uuid, $3::text, now.at FROM now LEFT JOIN (SELECT count(*) AS n FROM ended) AS done ON true \
             WHERE done.n >= 0 RETURNING plan",
        )
        .bind(self.offset())
        .bind(tenant_id.0)
        .bind(plan);
        self.row::<Row>("assign_plan", sql).await.map(drop)
    }
}
