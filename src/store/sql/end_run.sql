-- end_run: final state, charge and release, in one statement: the moment of truth.
-- The guard names everything that the caller saw; whoever lost it changes nothing.
WITH lock AS MATERIALIZED (
    SELECT pg_advisory_xact_lock_shared(hashtextextended($1::uuid::text, 0))
), run AS (
    UPDATE runs AS run
    SET status = $2::text, actual_cost_usd_micros = $3::bigint,
        money_state = CASE WHEN $3::bigint > 0 THEN 'SETTLED' ELSE 'REFUNDED' END,
        reason_code = $4::text, reason_detail = $5::text, completed_at = now.at,
        retention_until = now.at + coalesce((
            SELECT make_interval(days => plan.retention_days)
            FROM tenant_plans AS assigned JOIN plans AS plan USING (plan)
            WHERE assigned.tenant_id = run.tenant_id AND assigned.ended_at IS NULL), interval '1 day'),
        finalize_stage = NULL, lease_token = NULL, lease_expires_at = NULL, version = version + 1
    FROM lock, (SELECT statement_timestamp() + $6::bigint * interval '1 microsecond' AS at) AS now
    WHERE run.run_id = $7::uuid AND run.tenant_id IS NOT DISTINCT FROM $1::uuid AND run.version = $8::bigint
        AND run.completed_at IS NULL AND run.money_state = $9::text
        AND run.lease_token IS NOT DISTINCT FROM $10::uuid
        AND run.finalize_stage IS NOT DISTINCT FROM $11::text
        AND ($12::uuid IS NULL OR run.finalize_token = $12::uuid)
        AND ($13::timestamptz IS NULL OR run.lease_expires_at = $13::timestamptz)
    RETURNING run.run_id, run.tenant_id, run.key_id, run.reserved_usd_micros, run.actual_cost_usd_micros, run.completed_at
), charge AS (
    INSERT INTO ledger_transfers (tenant_id, kind, debit_account, credit_account, amount_usd_micros, run_id, created_at)
    SELECT tenant_id, 'charge', 'held', 'revenue', actual_cost_usd_micros, run_id, completed_at
    FROM run WHERE actual_cost_usd_micros > 0
), release AS (
    INSERT INTO ledger_transfers (tenant_id, kind, debit_account, credit_account, amount_usd_micros, run_id, created_at)
    SELECT tenant_id, 'release', 'held', 'available', reserved_usd_micros - actual_cost_usd_micros, run_id, completed_at
    FROM run WHERE reserved_usd_micros > actual_cost_usd_micros
), spend AS (
    UPDATE api_keys AS root
    SET spent_usd_micros = root.spent_usd_micros - (run.reserved_usd_micros - run.actual_cost_usd_micros)
    FROM run JOIN api_keys AS key USING (key_id)
    WHERE root.key_id = key.limits_key_id AND root.spend_max_usd_micros IS NOT NULL
)
SELECT run_id FROM run
