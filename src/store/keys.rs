//! API keys: who a key belongs to, and their life.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::{
    QueryableByName,
    sql_types::{Nullable, Text, Timestamptz, Uuid as SqlUuid},
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
    plan::Caller,
};

/// A key, as operators see it. The secret is nowhere.
#[derive(Clone, Debug, serde::Serialize)]
pub struct KeyRecord {
    /// Its id.
    pub key_id: KeyId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// The owner's name for it.
    pub label: String,
    /// Since when.
    pub created_at: DateTime<Utc>,
    /// Until when, if it ends by itself.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was revoked, if it was.
    pub revoked_at: Option<DateTime<Utc>>,
}

// Statements name their columns, never `*`: a column that a migration adds would change the form of those
// that are prepared already.

#[derive(QueryableByName)]
struct KeyRow {
    #[diesel(sql_type = SqlUuid)]
    key_id: Uuid,
    #[diesel(sql_type = SqlUuid)]
    tenant_id: Uuid,
    #[diesel(sql_type = Text)]
    label: String,
    #[diesel(sql_type = Timestamptz)]
    created_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    expires_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    revoked_at: Option<DateTime<Utc>>,
}

impl From<KeyRow> for KeyRecord {
    fn from(row: KeyRow) -> Self {
        Self {
            key_id: KeyId(row.key_id),
            tenant_id: TenantId(row.tenant_id),
            label: row.label,
            created_at: row.created_at,
            expires_at: row.expires_at,
            revoked_at: row.revoked_at,
        }
    }
}

impl Store {
    /// Whose key this is, if it opens anything now.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn find_caller(&self, digest: KeyDigest) -> Result<Option<Caller>, Error> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = SqlUuid)]
            tenant_id: Uuid,
            #[diesel(sql_type = SqlUuid)]
            key_id: Uuid,
            #[diesel(sql_type = Text)]
            tenant_status: String,
            #[diesel(embed)]
            plan: PlanRow,
        }
        const TEXT: &str = concat!(
            "-- find_caller\nSELECT key.tenant_id, key.key_id, tenant.status AS tenant_status, ",
            plan_columns!(),
            " FROM api_keys AS key JOIN tenants AS tenant USING (tenant_id) \
             JOIN tenant_plans AS assigned ON assigned.tenant_id = tenant.tenant_id AND assigned.ended_at IS NULL \
             JOIN plans AS plan ON plan.plan = assigned.plan \
             WHERE key.key_sha256 = $1::bytea AND key.revoked_at IS NULL AND (key.expires_at IS NULL \
                OR key.expires_at > statement_timestamp() + $2::bigint * interval '1 microsecond')"
        );
        let sql = Sql::new(TEXT).bind(digest.0.to_vec()).bind(self.offset());
        let row: Option<Row> = self.row("find_caller", sql).await?;
        row.map(|row| {
            Ok(Caller {
                tenant_id: TenantId(row.tenant_id),
                key_id: KeyId(row.key_id),
                suspended: row.tenant_status != "ACTIVE",
                plan: row.plan.try_into()?,
            })
        })
        .transpose()
    }

    /// Stores a new key of a tenant.
    ///
    /// # Errors
    /// [`Error::Refused`] by `api_keys_tenant_id_fkey` for an unknown tenant.
    pub async fn create_key(
        &self,
        tenant_id: TenantId,
        label: &str,
        digest: KeyDigest,
    ) -> Result<KeyRecord, Error> {
        let sql = Sql::new(
            "-- create_key\nINSERT INTO api_keys (key_id, tenant_id, label, key_sha256, created_at) \
             VALUES ($1::uuid, $2::uuid, $3::text, $4::bytea, \
                statement_timestamp() + $5::bigint * interval '1 microsecond') RETURNING key_id, tenant_id, label, created_at, expires_at, revoked_at",
        )
        .bind(KeyId::new().0)
        .bind(tenant_id.0)
        .bind(label)
        .bind(digest.0.to_vec())
        .bind(self.offset());
        let row: Option<KeyRow> = self.row("create_key", sql).await?;
        row.map(KeyRecord::from).ok_or_else(|| Error::Query(anyhow::anyhow!("no row")))
    }

    /// A tenant's keys, oldest first.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn keys(&self, tenant_id: TenantId) -> Result<Vec<KeyRecord>, Error> {
        let sql = Sql::new(
            "-- keys\nSELECT key_id, tenant_id, label, created_at, expires_at, revoked_at FROM api_keys WHERE tenant_id = $1::uuid ORDER BY created_at, key_id",
        )
        .bind(tenant_id.0);
        let rows: Vec<KeyRow> = self.rows("keys", sql).await?;
        Ok(rows.into_iter().map(KeyRecord::from).collect())
    }

    /// Makes a successor of a working key, with its label, and lets the old one work for `grace`
    /// more. `None` when there is no such working key.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn rotate_key(
        &self,
        key_id: KeyId,
        grace: Duration,
        digest: KeyDigest,
    ) -> Result<Option<KeyRecord>, Error> {
        let sql = Sql::new(
            "-- rotate_key\nWITH now AS ( \
                SELECT statement_timestamp() + $1::bigint * interval '1 microsecond' AS at \
             ), old AS ( \
                UPDATE api_keys SET expires_at = least(expires_at, now.at + $2::bigint * interval '1 microsecond') \
                FROM now WHERE key_id = $3::uuid AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now.at) \
                RETURNING tenant_id, label \
             ) INSERT INTO api_keys (key_id, tenant_id, label, key_sha256, created_at) \
             SELECT $4::uuid, old.tenant_id, old.label, $5::bytea, now.at FROM old, now RETURNING key_id, tenant_id, label, created_at, expires_at, revoked_at",
        )
        .bind(self.offset())
        .bind(micros(grace))
        .bind(key_id.0)
        .bind(KeyId::new().0)
        .bind(digest.0.to_vec());
        Ok(self.row::<KeyRow>("rotate_key", sql).await?.map(KeyRecord::from))
    }

    /// Revokes a key; a second time changes nothing. `None` for no such key.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn revoke_key(&self, key_id: KeyId) -> Result<Option<KeyRecord>, Error> {
        let sql = Sql::new(
            "-- revoke_key\nUPDATE api_keys SET revoked_at = coalesce(revoked_at, \
                statement_timestamp() + $1::bigint * interval '1 microsecond') \
             WHERE key_id = $2::uuid RETURNING key_id, tenant_id, label, created_at, expires_at, revoked_at",
        )
        .bind(self.offset())
        .bind(key_id.0);
        Ok(self.row::<KeyRow>("revoke_key", sql).await?.map(KeyRecord::from))
    }
}
