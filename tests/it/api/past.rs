//! Runs of other days: written straight into the books, as they would have been.

use dpp::domain::id::RunId;

use crate::harness::{Tenant, TestApp};

/// A run that has ended.
#[derive(Clone, Debug)]
pub struct Past {
    pub pack_type: &'static str,
    pub reserved_micros: i64,
    pub cost_micros: i64,
    /// As PostgreSQL reads it, with its zone.
    pub ended_at: String,
}

impl Past {
    /// A run of the decision pack that held a cent.
    pub fn decision(cost_micros: i64, ended_at: &str) -> Self {
        Self { pack_type: "decision", reserved_micros: 10_000, cost_micros, ended_at: ended_at.to_owned() }
    }

    /// The statements that write it down, with its hold, its charge and its release.
    pub fn sql(&self, tenant: &Tenant, run_id: RunId) -> String {
        let Self { pack_type, reserved_micros, cost_micros, ended_at } = self;
        let tenant_id = tenant.id;
        let money_state = if *cost_micros > 0 { "SETTLED" } else { "REFUNDED" };
        let mut rows = vec![("hold", "available", "held", *reserved_micros)];
        if *cost_micros > 0 {
            rows.push(("charge", "held", "revenue", *cost_micros));
        }
        if reserved_micros > cost_micros {
            rows.push(("release", "held", "available", reserved_micros - cost_micros));
        }
        let rows: Vec<_> = rows
            .into_iter()
            .map(|(kind, debit, credit, amount)| {
                format!(
                    "('{tenant_id}', '{kind}', '{debit}', '{credit}', {amount}, '{run_id}', '{ended_at}')"
                )
            })
            .collect();
        format!(
            "SELECT pg_advisory_xact_lock_shared(hashtextextended('{tenant_id}', 0));
             INSERT INTO runs (run_id, tenant_id, key_id, pack_type, idempotency_key, payload_sha256, metadata,
                 trace_id, reserved_usd_micros, minimum_fee_usd_micros, actual_cost_usd_micros, timebox_secs,
                 status, money_state, reason_code, reason_detail, created_at, next_send_at, completed_at,
                 retention_until)
             SELECT '{run_id}', tenant_id, key_id, '{pack_type}', '{run_id}', decode(repeat('00', 32), 'hex'),
                 '{{}}', replace('{run_id}', '-', ''), {reserved_micros}, 5000, {cost_micros}, 60, 'FAILED',
                 '{money_state}', 'test', 'test', '{ended_at}', '{ended_at}', '{ended_at}',
                 timestamptz '{ended_at}' + interval '7 days'
             FROM api_keys WHERE tenant_id = '{tenant_id}' LIMIT 1;
             INSERT INTO ledger_transfers (tenant_id, kind, debit_account, credit_account, amount_usd_micros,
                 run_id, created_at) VALUES {};",
            rows.join(", ")
        )
    }

    /// Writes it down.
    pub async fn write(&self, app: &TestApp, tenant: &Tenant) -> RunId {
        let run_id = RunId::new();
        app.place.sql(&format!("BEGIN; {} COMMIT", self.sql(tenant, run_id))).await;
        end_epoch(app, tenant).await;
        run_id
    }

    /// Writes down many, all at once.
    pub async fn write_many(&self, app: &TestApp, tenant: &Tenant, count: u32) {
        let template = "0194f1a0-0000-7000-8000-000000000000";
        let one = self.sql(tenant, template.parse().unwrap());
        let (_, inserts) = one.split_once(';').unwrap();
        // The same statements with the id of each, in one loop of the server's.
        let each = inserts.replace(&format!("'{template}'"), "id::text::uuid");
        let each = each.replace(
            "SELECT id::text::uuid, tenant_id, key_id, 'decision', id::text::uuid,",
            "SELECT id, tenant_id, key_id, 'decision', id::text,",
        );
        let each = each.replace("replace(id::text::uuid, '-', '')", "replace(id::text, '-', '')");
        app.place
            .sql(&format!(
                "DO $$ DECLARE id uuid; BEGIN FOR number IN 1..{count} LOOP id := gen_random_uuid(); {each} END LOOP; END $$"
            ))
            .await;
        end_epoch(app, tenant).await;
    }
}

/// Lets the gate know that it knows nothing of what was written down.
pub async fn end_epoch(app: &TestApp, tenant: &Tenant) {
    let raise = "UPDATE tenants SET budget_epoch = nextval('budget_epoch_seq') WHERE tenant_id";
    app.place.sql(&format!("{raise} = '{}'", tenant.id)).await;
}
