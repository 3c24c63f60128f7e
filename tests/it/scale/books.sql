-- The books of a product that has sold 1,000,000 runs to 1,000 tenants, one of which bought 300,000 of them, and has
-- 2,000 runs waiting: as the product would have left them, with a snapshot about every 5,000 transfers of a tenant.
-- Foreign keys are not checked row by row, for speed alone: the audit finds every row that has no run.
SET session_replication_role = replica;

CREATE FUNCTION pg_temp.tenant(number bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS
    $$ SELECT ('018f0000-0000-7000-8000-' || lpad(to_hex(number), 12, '0'))::uuid $$;

INSERT INTO tenants (tenant_id, name, created_at)
SELECT pg_temp.tenant(number), 'tenant ' || number, now() - interval '200 days' FROM generate_series(1, 1000) AS number;
INSERT INTO tenant_plans (tenant_id, plan, assigned_at) SELECT tenant_id, 'enterprise', created_at FROM tenants;
INSERT INTO api_keys (key_id, tenant_id, label, key_sha256, created_at)
SELECT tenant_id, tenant_id, '', sha256(tenant_id::text::bytea), created_at FROM tenants;
INSERT INTO ledger_transfers (tenant_id, kind, debit_account, credit_account, amount_usd_micros, reference, created_at)
SELECT tenant_id, 'deposit', 'funding', 'available', 1000000000000, 'first', created_at FROM tenants ORDER BY tenant_id;

-- 85 % completed, 10 % failed at the minimum fee, 5 % expired; all but the last 2,000 past their retention.
INSERT INTO runs (run_id, tenant_id, key_id, pack_type, idempotency_key, payload_sha256, inputs, metadata, trace_id,
    reserved_usd_micros, minimum_fee_usd_micros, actual_cost_usd_micros, timebox_secs, attempts, version, status, money_state,
    finalize_token, claimed_at, claim_cost_usd_micros, result_key, result_sha256, reason_code, reason_detail, created_at,
    next_send_at, started_at, completed_at, retention_until, purged_at)
SELECT id, tenant, tenant, 'decision', 'key-' || number, sha256(number::text::bytea),
    CASE WHEN waits THEN '{"criteria":[{"name":"price","weight":1}],"options":[{"name":"A","scores":{"price":1}},{"name":"B","scores":{"price":2}}]}'::json END,
    '{}', md5(number::text), reserved, 20000, cost, 60, CASE WHEN waits OR expired THEN 0 ELSE 1 END, CASE WHEN waits THEN 1 ELSE 4 END,
    CASE WHEN waits THEN 'QUEUED' WHEN expired THEN 'EXPIRED' WHEN failed THEN 'FAILED' ELSE 'COMPLETED' END,
    CASE WHEN waits THEN 'RESERVED' WHEN expired THEN 'REFUNDED' ELSE 'SETTLED' END,
    CASE WHEN completed THEN gen_random_uuid() END, CASE WHEN completed THEN at END, CASE WHEN completed THEN cost END,
    CASE WHEN completed THEN tenant || '/' || id || '/1-x/pack_envelope.json' END,
    CASE WHEN completed THEN encode(sha256(number::text::bytea), 'hex') END,
    CASE WHEN expired OR failed THEN 'some_reason' END, CASE WHEN expired OR failed THEN 'Some reason.' END,
    at, at, CASE WHEN waits OR expired THEN NULL ELSE at END,
    CASE WHEN NOT waits THEN at END, CASE WHEN NOT waits THEN at + interval '90 days' END,
    CASE WHEN NOT waits THEN at + interval '90 days' END
FROM (
    SELECT *, CASE WHEN waits THEN NULL WHEN expired THEN 0 WHEN failed THEN 20000 ELSE 12000 + number % 50 * 100 END AS cost,
        NOT (waits OR expired OR failed) AS completed
    FROM (
        SELECT number,
            (lpad(to_hex(1690000000000 + number), 12, '0') || '7' || substr(md5(number::text), 1, 3)
                || '8' || substr(md5(number::text), 4, 15))::uuid AS id,
            pg_temp.tenant(CASE WHEN number % 10 < 3 THEN 1 ELSE 2 + number % 999 END) AS tenant,
            number > 1000000 AS waits, number <= 1000000 AND number % 20 = 7 AS expired,
            number <= 1000000 AND number % 10 = 9 AS failed,
            1000000 AS reserved,
            CASE WHEN number > 1000000 THEN now() ELSE now() - interval '190 days' + number * interval '8 seconds' END AS at
        FROM generate_series(1, 1002000) AS number
    ) AS drawn
) AS run ORDER BY number;

INSERT INTO ledger_transfers (tenant_id, kind, debit_account, credit_account, amount_usd_micros, run_id, created_at)
SELECT run.tenant_id, line.kind, line.debit, line.credit, line.amount, run.run_id, run.created_at
FROM runs AS run, LATERAL (VALUES
    ('hold', 'available', 'held', run.reserved_usd_micros),
    ('charge', 'held', 'revenue', run.actual_cost_usd_micros),
    ('release', 'held', 'available', run.reserved_usd_micros - run.actual_cost_usd_micros)
) AS line (kind, debit, credit, amount)
WHERE line.amount > 0 ORDER BY run.run_id;

INSERT INTO ledger_snapshots (tenant_id, last_transfer_id, deposited_usd_micros, available_usd_micros, held_usd_micros,
    charged_usd_micros, created_at)
SELECT tenant_id, transfer_id, deposited, available, held, charged, created_at
FROM (
    SELECT tenant_id, transfer_id, created_at, row_number() OVER history AS row,
        sum(CASE WHEN kind = 'deposit' THEN amount_usd_micros ELSE 0 END) OVER history AS deposited,
        sum(CASE WHEN credit_account = 'available' THEN amount_usd_micros WHEN debit_account = 'available' THEN -amount_usd_micros ELSE 0 END) OVER history AS available,
        sum(CASE WHEN credit_account = 'held' THEN amount_usd_micros WHEN debit_account = 'held' THEN -amount_usd_micros ELSE 0 END) OVER history AS held,
        sum(CASE WHEN kind = 'charge' THEN amount_usd_micros ELSE 0 END) OVER history AS charged
    FROM ledger_transfers WINDOW history AS (PARTITION BY tenant_id ORDER BY transfer_id)
) AS summed WHERE row % 5000 = 0;
