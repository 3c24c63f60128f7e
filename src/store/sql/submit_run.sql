-- submit_run: the run and its hold, in one statement.
--
-- The shared lock waits for a rebuild of this tenant's budget. This statement's snapshot is older than
-- that wait, so the row lock must re-read epoch and status: it does, because both are part of a unique
-- key and a change of it conflicts with FOR KEY SHARE. A hold admitted under an epoch that has ended, or
-- before a suspension, inserts nothing.
WITH gate AS MATERIALIZED (
    SELECT tenant.tenant_id
    FROM (SELECT pg_advisory_xact_lock_shared(hashtextextended($1::uuid::text, 0))) AS lock, tenants AS tenant
    WHERE tenant.tenant_id = $1::uuid AND tenant.budget_epoch = $2::bigint AND tenant.status = 'ACTIVE'
    FOR KEY SHARE OF tenant
), run AS (
    INSERT INTO runs (run_id, tenant_id, key_id, pack_type, idempotency_key, payload_sha256, inputs, metadata,
        trace_id, reserved_usd_micros, minimum_fee_usd_micros, timebox_secs, created_at, next_send_at)
    SELECT $3::uuid, tenant_id, $4::uuid, $5::text, $6::text, $7::bytea, $8::json, $9::json,
        $10::text, $11::bigint, $12::bigint, $13::integer, now.at, now.at + $14::bigint * interval '1 microsecond'
    FROM gate, (SELECT statement_timestamp() + $15::bigint * interval '1 microsecond' AS at) AS now
    ON CONFLICT DO NOTHING
    RETURNING *
), hold AS (
    INSERT INTO ledger_transfers (tenant_id, kind, debit_account, credit_account, amount_usd_micros, run_id, created_at)
    SELECT tenant_id, 'hold', 'available', 'held', reserved_usd_micros, run_id, created_at FROM run
), spend AS (
    -- Of a key that may spend so much and no more. api_keys_spent_check refuses the whole statement where it
    -- would be passed; the row's lock lets one submit of such a key in at a time.
    UPDATE api_keys AS root SET spent_usd_micros = root.spent_usd_micros + run.reserved_usd_micros
    FROM run JOIN api_keys AS key USING (key_id)
    WHERE root.key_id = key.limits_key_id AND root.spend_max_usd_micros IS NOT NULL
)
SELECT (SELECT count(*) FROM gate) AS admitted, run.created_at
FROM (SELECT 1) AS one LEFT JOIN run ON true
