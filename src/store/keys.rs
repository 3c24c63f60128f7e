//! API keys: who a key belongs to, and their life.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::{
    QueryableByName,
    sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use uuid::Uuid;

use super::{
    Error, Store,
    runs::micros,
    sql::Sql,
    tenants::{PlanRow, plan_columns},
};
use crate::domain::{
    api_key::KeyDigest,
    id::{KeyId, TenantId},
    limit::{KeyLimits, Month},
    money::UsdMicros,
    plan::Caller,
    scope::{Scope, Scopes},
};

/// A key in the making.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Whose it will be.
    pub tenant_id: TenantId,
    /// The owner's name for it.
    pub label: String,
    /// What it may do.
    pub scopes: Scopes,
    /// Until when, if it ends by itself.
    pub expires_at: Option<DateTime<Utc>>,
    /// What it is limited to.
    pub limits: NewLimits,
}

/// The limits of a key in the making.
#[derive(Clone, Debug, Default)]
pub enum NewLimits {
    /// None.
    #[default]
    Unlimited,
    /// Limits of its own, which make it the root of a family; zero is unlimited.
    Own {
        /// New runs a minute.
        runs_per_minute: i32,
        /// Other requests a minute.
        polls_per_minute: i32,
        /// The most that its runs may cost, ever.
        spend_max: Option<UsdMicros>,
    },
    /// Those of a family.
    Shared(KeyLimits),
}

/// A key, as its owner and operators see it. The secret is nowhere.
#[derive(Clone, Debug, serde::Serialize)]
pub struct KeyRecord {
    /// Its id.
    pub key_id: KeyId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// The owner's name for it.
    pub label: String,
    /// What it may do.
    pub scopes: Scopes,
    /// Since when.
    pub created_at: DateTime<Utc>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<DateTime<Utc>>,
    /// Until when, if it ends by itself.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was given a successor, if it was.
    pub rotated_at: Option<DateTime<Utc>>,
    /// When it was revoked, if it was.
    pub revoked_at: Option<DateTime<Utc>>,
    /// What it is limited to, with those that share its limits.
    pub limits: Option<KeyLimits>,
    /// What its family's runs have cost and hold, where that is limited.
    #[serde(rename = "spent_usd")]
    pub spent: Option<UsdMicros>,
}

// Statements name their columns, never `*`: a column that a migration adds would change the form of those
// that are prepared already.

/// The columns that [`LimitsRow`] reads.
macro_rules! limits_columns {
    () => {
        "key.limits_key_id, key.runs_per_minute AS key_runs_per_minute, \
         key.polls_per_minute AS key_polls_per_minute, key.spend_max_usd_micros"
    };
}

/// The columns that [`KeyRow`] reads, for `SELECT` and `RETURNING`.
macro_rules! key_columns {
    () => {
        concat!(limits_columns!(), ", key.key_id, key.tenant_id, key.label, key.scopes, key.created_at, key.last_used_at, key.expires_at, \
         key.rotated_at, key.revoked_at, coalesce(( \
            SELECT root.spent_usd_micros FROM api_keys AS root WHERE root.key_id = key.limits_key_id), 0) \
         AS spent_usd_micros")
    };
}

#[derive(QueryableByName)]
struct KeyRow {
    #[diesel(sql_type = SqlUuid)]
    key_id: Uuid,
    #[diesel(sql_type = SqlUuid)]
    tenant_id: Uuid,
    #[diesel(sql_type = Text)]
    label: String,
    #[diesel(sql_type = Nullable<Array<Text>>)]
    scopes: Option<Vec<String>>,
    #[diesel(sql_type = Timestamptz)]
    created_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    last_used_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    expires_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    rotated_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    revoked_at: Option<DateTime<Utc>>,
    #[diesel(embed)]
    limits: LimitsRow,
    #[diesel(sql_type = BigInt)]
    spent_usd_micros: i64,
}

#[derive(QueryableByName)]
struct LimitsRow {
    #[diesel(sql_type = Nullable<SqlUuid>)]
    limits_key_id: Option<Uuid>,
    #[diesel(sql_type = Integer)]
    key_runs_per_minute: i32,
    #[diesel(sql_type = Integer)]
    key_polls_per_minute: i32,
    #[diesel(sql_type = Nullable<BigInt>)]
    spend_max_usd_micros: Option<i64>,
}

impl LimitsRow {
    fn limits(self) -> Result<Option<KeyLimits>, Error> {
        let Some(root) = self.limits_key_id else { return Ok(None) };
        Ok(Some(KeyLimits {
            root: KeyId(root),
            runs_per_minute: self.key_runs_per_minute,
            polls_per_minute: self.key_polls_per_minute,
            spend_max: self.spend_max_usd_micros.map(|micros| amount(root, micros)).transpose()?,
        }))
    }
}

fn amount(key_id: Uuid, micros: i64) -> Result<UsdMicros, Error> {
    UsdMicros::new(micros)
        .map_err(|bad| Error::Corrupt { table: "api_keys", detail: format!("key {key_id}: {bad}") })
}

impl TryFrom<KeyRow> for KeyRecord {
    type Error = Error;

    fn try_from(row: KeyRow) -> Result<Self, Error> {
        let limits = row.limits.limits()?;
        let spent = limits.as_ref().filter(|limits| limits.spend_max.is_some());
        Ok(Self {
            spent: spent.map(|limits| amount(limits.root.0, row.spent_usd_micros)).transpose()?,
            limits,
            key_id: KeyId(row.key_id),
            tenant_id: TenantId(row.tenant_id),
            label: row.label,
            scopes: scopes(row.scopes, row.key_id)?,
            created_at: row.created_at,
            last_used_at: row.last_used_at,
            expires_at: row.expires_at,
            rotated_at: row.rotated_at,
            revoked_at: row.revoked_at,
        })
    }
}

/// A name that no code of this version knows is an error, never a right that is left out.
fn scopes(names: Option<Vec<String>>, key_id: Uuid) -> Result<Scopes, Error> {
    let Some(names) = names else { return Ok(Scopes::All) };
    let scopes: Option<Vec<_>> = names.iter().map(|name| Scope::named(name)).collect();
    scopes.map(Scopes::Only).ok_or_else(|| Error::Corrupt {
        table: "api_keys",
        detail: format!("key {key_id}: unknown scopes {names:?}"),
    })
}

fn scope_names(scopes: &Scopes) -> Option<Vec<String>> {
    match scopes {
        Scopes::All => None,
        Scopes::Only(scopes) => Some(scopes.iter().map(|scope| scope.name().to_owned()).collect()),
    }
}

impl Store {
    /// Whose key this is, if it opens anything now, and whether [`Store::touch_key`] is due.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn find_caller(&self, digest: KeyDigest) -> Result<Option<(Caller, bool)>, Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = SqlUuid)]
            tenant_id: Uuid,
            #[diesel(sql_type = SqlUuid)]
            key_id: Uuid,
            #[diesel(sql_type = Nullable<Array<Text>>)]
            scopes: Option<Vec<String>>,
            #[diesel(sql_type = Nullable<Timestamptz>)]
            expires_at: Option<DateTime<Utc>>,
            #[diesel(sql_type = Bool)]
            untouched: bool,
            #[diesel(sql_type = Text)]
            tenant_status: String,
            #[diesel(embed)]
            plan: PlanRow,
            #[diesel(embed)]
            limits: LimitsRow,
            #[diesel(sql_type = BigInt)]
            month: i64,
        }
        const TEXT: &str = concat!(
            "-- find_caller\nSELECT key.tenant_id, key.key_id, key.scopes, key.expires_at, \
                coalesce(key.last_used_at < now.at - interval '1 minute', true) AS untouched, \
                tenant.status AS tenant_status, ( \
                extract(year FROM now.at AT TIME ZONE 'UTC') * 12 + extract(month FROM now.at AT TIME ZONE 'UTC') \
             )::bigint AS month, ",
            limits_columns!(),
            ", ",
            plan_columns!(),
            " FROM (SELECT statement_timestamp() + $1::bigint * interval '1 microsecond' AS at) AS now, \
                api_keys AS key JOIN tenants AS tenant USING (tenant_id) \
             JOIN tenant_plans AS assigned ON assigned.tenant_id = tenant.tenant_id AND assigned.ended_at IS NULL \
             JOIN plans AS plan ON plan.plan = assigned.plan \
             WHERE key.key_sha256 = $2::bytea AND key.revoked_at IS NULL \
                AND (key.expires_at IS NULL OR key.expires_at > now.at)"
        );
        let sql = Sql::new(TEXT).bind(self.offset()).bind(digest.0.to_vec());
        let row: Option<Row> = self.row("find_caller", sql).await?;
        row.map(|row| {
            let caller = Caller {
                tenant_id: TenantId(row.tenant_id),
                key_id: KeyId(row.key_id),
                scopes: scopes(row.scopes, row.key_id)?,
                key_expires_at: row.expires_at,
                suspended: row.tenant_status != "ACTIVE",
                plan: row.plan.try_into()?,
                key_limits: row.limits.limits()?,
                month: Month(row.month),
            };
            Ok((caller, row.untouched))
        })
        .transpose()
    }

    /// Writes down that a key is in use; once a minute, whoever comes first.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn touch_key(&self, key_id: KeyId) -> Result<(), Error> {
        const TEXT: &str = concat!(
            "-- touch_key\nUPDATE api_keys AS key SET last_used_at = now.at \
             FROM (SELECT statement_timestamp() + $1::bigint * interval '1 microsecond' AS at) AS now \
             WHERE key.key_id = $2::uuid AND coalesce(key.last_used_at < now.at - interval '1 minute', true) RETURNING ",
            key_columns!()
        );
        self.row::<KeyRow>("touch_key", Sql::new(TEXT).bind(self.offset()).bind(key_id.0)).await.map(drop)
    }

    /// Stores a new key of a tenant, which may do everything and does not end by itself.
    ///
    /// # Errors
    /// [`Error::Refused`] by `api_keys_tenant_id_fkey` for an unknown tenant.
    pub async fn create_key(
        &self,
        tenant_id: TenantId,
        label: &str,
        digest: KeyDigest,
    ) -> Result<KeyRecord, Error> {
        let key = NewKey {
            tenant_id,
            label: label.to_owned(),
            scopes: Scopes::All,
            expires_at: None,
            limits: NewLimits::default(),
        };
        let record = self.create_limited_key(&key, None, digest).await?;
        record.ok_or_else(|| Error::Query(anyhow::anyhow!("no row")))
    }

    /// Stores a new key of a tenant; `None` when it would have ended before it began, or the key that asks for
    /// it (`by`; an operator has none) does not work any more or ends before it.
    ///
    /// # Errors
    /// [`Error::Refused`] by `api_keys_tenant_id_fkey` for an unknown tenant.
    pub async fn create_limited_key(
        &self,
        key: &NewKey,
        by: Option<KeyId>,
        digest: KeyDigest,
    ) -> Result<Option<KeyRecord>, Error> {
        // The lock waits for a revocation that is under way, and sees what became of it.
        const TEXT: &str = concat!(
            "-- create_key\nWITH now AS ( \
                SELECT statement_timestamp() + $1::bigint * interval '1 microsecond' AS at \
             ), asking AS ( \
                SELECT asks.expires_at FROM api_keys AS asks, now \
                WHERE asks.key_id = $2::uuid AND asks.revoked_at IS NULL \
                    AND (asks.expires_at IS NULL OR asks.expires_at > now.at) FOR SHARE OF asks \
             ) INSERT INTO api_keys AS key (key_id, tenant_id, label, scopes, key_sha256, created_at, expires_at, \
                limits_key_id, runs_per_minute, polls_per_minute, spend_max_usd_micros) \
             SELECT $3::uuid, $4::uuid, $5::text, $6::text[], $7::bytea, now.at, $8::timestamptz, \
                $9::uuid, $10::integer, $11::integer, $12::bigint FROM now \
             WHERE coalesce($8::timestamptz > now.at, true) AND ($2::uuid IS NULL OR EXISTS ( \
                SELECT FROM asking WHERE asking.expires_at IS NULL OR $8::timestamptz <= asking.expires_at)) RETURNING ",
            key_columns!()
        );
        let key_id = KeyId::new();
        let limits = match &key.limits {
            NewLimits::Unlimited => None,
            NewLimits::Own { runs_per_minute, polls_per_minute, spend_max } => Some(KeyLimits {
                root: key_id,
                runs_per_minute: *runs_per_minute,
                polls_per_minute: *polls_per_minute,
                spend_max: *spend_max,
            }),
            NewLimits::Shared(limits) => Some(limits.clone()),
        };
        let sql = Sql::new(TEXT)
            .bind(self.offset())
            .bind(by.map(|key| key.0))
            .bind(key_id.0)
            .bind(key.tenant_id.0)
            .bind(key.label.as_str())
            .bind(scope_names(&key.scopes))
            .bind(digest.0.to_vec())
            .bind(key.expires_at)
            .bind(limits.as_ref().map(|limits| limits.root.0))
            .bind(limits.as_ref().map_or(0, |limits| limits.runs_per_minute))
            .bind(limits.as_ref().map_or(0, |limits| limits.polls_per_minute))
            .bind(limits.and_then(|limits| limits.spend_max).map(UsdMicros::get));
        self.key("create_key", sql).await
    }

    /// What the runs of a root key's family have cost and hold.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn key_spent(&self, root: KeyId) -> Result<UsdMicros, Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = BigInt)]
            spent_usd_micros: i64,
        }
        let sql = Sql::new("-- key_spent\nSELECT spent_usd_micros FROM api_keys WHERE key_id = $1::uuid")
            .bind(root.0);
        let row: Option<Row> = self.row("key_spent", sql).await?;
        row.map_or(Ok(UsdMicros::ZERO), |row| amount(root.0, row.spent_usd_micros))
    }

    /// All of a tenant's keys, oldest first.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn keys(&self, tenant_id: TenantId) -> Result<Vec<KeyRecord>, Error> {
        const TEXT: &str = concat!(
            "-- keys\nSELECT ",
            key_columns!(),
            " FROM api_keys AS key WHERE key.tenant_id = $1::uuid ORDER BY key.created_at, key.key_id"
        );
        let rows: Vec<KeyRow> = self.rows("keys", Sql::new(TEXT).bind(tenant_id.0)).await?;
        rows.into_iter().map(KeyRecord::try_from).collect()
    }

    /// A tenant's keys, newest first, after the one made then with that id.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn list_keys(
        &self,
        tenant_id: TenantId,
        after: Option<(DateTime<Utc>, KeyId)>,
        limit: i64,
    ) -> Result<Vec<KeyRecord>, Error> {
        const TEXT: &str = concat!(
            "-- list_keys\nSELECT ",
            key_columns!(),
            " FROM api_keys AS key WHERE key.tenant_id = $1::uuid \
             AND (key.created_at, key.key_id) < (coalesce($2::timestamptz, 'infinity'), \
                coalesce($3::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')) \
             ORDER BY key.created_at DESC, key.key_id DESC LIMIT $4::bigint"
        );
        let sql = Sql::new(TEXT)
            .bind(tenant_id.0)
            .bind(after.map(|(at, _)| at))
            .bind(after.map(|(_, key)| key.0))
            .bind(limit);
        let rows: Vec<KeyRow> = self.rows("list_keys", sql).await?;
        rows.into_iter().map(KeyRecord::try_from).collect()
    }

    /// A key, if it is this tenant's.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn find_key(&self, tenant_id: TenantId, key_id: KeyId) -> Result<Option<KeyRecord>, Error> {
        const TEXT: &str = concat!(
            "-- find_key\nSELECT ",
            key_columns!(),
            " FROM api_keys AS key WHERE key.key_id = $1::uuid AND key.tenant_id IS NOT DISTINCT FROM $2::uuid"
        );
        self.key("find_key", Sql::new(TEXT).bind(key_id.0).bind(tenant_id.0)).await
    }

    /// Makes a successor of a working key, with its label, its rights and its own end, and lets the old one
    /// work for `grace` more. `None` when there is no such working key, or it has a successor already, or the
    /// key that asks (`by`; an operator has none) does not work any more or ends before it.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn rotate_key(
        &self,
        key_id: KeyId,
        by: Option<KeyId>,
        grace: Duration,
        digest: KeyDigest,
    ) -> Result<Option<KeyRecord>, Error> {
        // The end that the old key had before its grace is read under the lock that the update would take.
        const TEXT: &str = concat!(
            "-- rotate_key\nWITH now AS ( \
                SELECT statement_timestamp() + $1::bigint * interval '1 microsecond' AS at \
             ), asking AS ( \
                SELECT asks.expires_at FROM api_keys AS asks, now \
                WHERE asks.key_id = $2::uuid AND asks.revoked_at IS NULL \
                    AND (asks.expires_at IS NULL OR asks.expires_at > now.at) FOR NO KEY UPDATE OF asks \
             ), old AS ( \
                SELECT key.key_id, key.tenant_id, key.label, key.scopes, key.expires_at, key.limits_key_id, \
                    key.runs_per_minute, key.polls_per_minute, key.spend_max_usd_micros FROM api_keys AS key, now \
                WHERE key.key_id = $3::uuid AND key.revoked_at IS NULL AND key.rotated_at IS NULL \
                    AND (key.expires_at IS NULL OR key.expires_at > now.at) \
                    AND ($2::uuid IS NULL OR EXISTS ( \
                        SELECT FROM asking WHERE asking.expires_at IS NULL OR key.expires_at <= asking.expires_at)) \
                FOR NO KEY UPDATE OF key \
             ), ending AS ( \
                UPDATE api_keys AS key SET rotated_at = now.at, \
                    expires_at = least(key.expires_at, now.at + $4::bigint * interval '1 microsecond') \
                FROM old, now WHERE key.key_id = old.key_id \
             ) INSERT INTO api_keys AS key (key_id, tenant_id, label, scopes, key_sha256, created_at, expires_at, \
                limits_key_id, runs_per_minute, polls_per_minute, spend_max_usd_micros) \
             SELECT $5::uuid, old.tenant_id, old.label, old.scopes, $6::bytea, now.at, old.expires_at, \
                old.limits_key_id, old.runs_per_minute, old.polls_per_minute, old.spend_max_usd_micros FROM old, now \
             RETURNING ",
            key_columns!()
        );
        let sql = Sql::new(TEXT)
            .bind(self.offset())
            .bind(by.map(|key| key.0))
            .bind(key_id.0)
            .bind(micros(grace))
            .bind(KeyId::new().0)
            .bind(digest.0.to_vec());
        self.key("rotate_key", sql).await
    }

    /// Revokes a key; a second time changes nothing. `None` for no such key.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn revoke_key(&self, key_id: KeyId) -> Result<Option<KeyRecord>, Error> {
        const TEXT: &str = concat!(
            "-- revoke_key\nUPDATE api_keys AS key SET revoked_at = coalesce(key.revoked_at, \
                statement_timestamp() + $1::bigint * interval '1 microsecond') \
             WHERE key.key_id = $2::uuid RETURNING ",
            key_columns!()
        );
        self.key("revoke_key", Sql::new(TEXT).bind(self.offset()).bind(key_id.0)).await
    }

    async fn key(&self, op: &'static str, sql: Sql) -> Result<Option<KeyRecord>, Error> {
        self.row::<KeyRow>(op, sql).await?.map(KeyRecord::try_from).transpose()
    }
}
