-- usage: a tenant's ended runs and charges by UTC day and pack: what is rolled up, plus the ledger beyond
-- the mark. One statement, so one snapshot: nothing is missed or counted twice while a roll-up commits.
-- See roll_up_usage.sql for what counts, and for OFFSET 0.
WITH tail AS (
    SELECT (transfer.created_at AT TIME ZONE 'UTC')::date AS usage_date, run.pack_type,
        count(*) AS runs,
        coalesce(sum(transfer.amount_usd_micros) FILTER (WHERE transfer.kind = 'charge'), 0) AS charged_usd_micros
    FROM ledger_transfers AS transfer, LATERAL (
        SELECT pack_type, actual_cost_usd_micros FROM runs WHERE run_id = transfer.run_id OFFSET 0) AS run
    WHERE transfer.tenant_id = $1::uuid
        AND (transfer.kind = 'charge' OR transfer.kind = 'release' AND run.actual_cost_usd_micros = 0)
        AND transfer.transfer_id > coalesce((
            SELECT last_transfer_id FROM tenant_usage_marks WHERE tenant_id = $1::uuid), 0)
        AND (transfer.created_at AT TIME ZONE 'UTC')::date BETWEEN $2::date AND $3::date
    GROUP BY 1, 2
), days AS (
    SELECT usage_date, pack_type, runs, charged_usd_micros FROM tail
    UNION ALL
    SELECT usage_date, pack_type, runs, charged_usd_micros FROM tenant_usage_daily
    WHERE tenant_id = $1::uuid AND usage_date BETWEEN $2::date AND $3::date
)
SELECT usage_date, pack_type, sum(runs)::bigint AS runs, sum(charged_usd_micros)::bigint AS charged_usd_micros
FROM days GROUP BY usage_date, pack_type ORDER BY usage_date, pack_type
