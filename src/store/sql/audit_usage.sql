-- audit_usage: what is rolled up, day by day, held against the ledger up to each tenant's mark, for a range
-- of tenants.
WITH booked AS (
    SELECT transfer.tenant_id, (transfer.created_at AT TIME ZONE 'UTC')::date AS usage_date, run.pack_type,
        count(*) AS runs,
        coalesce(sum(transfer.amount_usd_micros) FILTER (WHERE transfer.kind = 'charge'), 0)::bigint AS charged
    FROM tenant_usage_marks AS mark
    JOIN ledger_transfers AS transfer ON transfer.tenant_id = mark.tenant_id
        AND transfer.transfer_id <= mark.last_transfer_id
    JOIN runs AS run ON run.run_id = transfer.run_id
        AND (transfer.kind = 'charge' OR transfer.kind = 'release' AND run.actual_cost_usd_micros = 0)
    WHERE mark.tenant_id BETWEEN $1::uuid AND $2::uuid
    GROUP BY 1, 2, 3
), day AS (
    SELECT * FROM tenant_usage_daily WHERE tenant_id BETWEEN $1::uuid AND $2::uuid
)
SELECT tenant_id, NULL::uuid AS run_id, 'usage' AS kind, coalesce(booked.charged, 0) AS expected,
    coalesce(day.charged_usd_micros, 0) AS found,
    format('usage of %s on %s: %s runs rolled up, %s in the ledger', pack_type, usage_date,
        coalesce(day.runs, 0), coalesce(booked.runs, 0)) AS detail
FROM booked FULL JOIN day USING (tenant_id, usage_date, pack_type)
WHERE (coalesce(booked.charged, 0), coalesce(booked.runs, 0))
    <> (coalesce(day.charged_usd_micros, 0), coalesce(day.runs, 0))
LIMIT 10000
