-- month: which month it is (UTC, by this clock), how long it has still to go, what it has been charged so far,
-- and what could be spent from its start on: that, and what is available and held now. See usage.sql.
WITH now AS (
    SELECT at, date_trunc('month', at, 'UTC') AS first, at AT TIME ZONE 'UTC' AS utc
    FROM (SELECT statement_timestamp() + $1::bigint * interval '1 microsecond' AS at) AS clock
), month AS (
    SELECT (extract(year FROM utc) * 12 + extract(month FROM utc))::bigint AS month,
        ceil(extract(epoch FROM date_trunc('month', utc) + interval '1 month' - utc))::bigint AS secs_left,
        (coalesce((
            SELECT sum(charged_usd_micros) FROM tenant_usage_daily
            WHERE tenant_id = $2::uuid AND usage_date >= date_trunc('month', utc)::date), 0)
        + coalesce((
            SELECT sum(amount_usd_micros) FROM ledger_transfers
            WHERE tenant_id = $2::uuid AND kind = 'charge' AND created_at >= first AND transfer_id > coalesce((
                SELECT last_transfer_id FROM tenant_usage_marks WHERE tenant_id = $2::uuid), 0)), 0))::bigint
            AS charged_usd_micros
    FROM now
)
SELECT month.month, month.secs_left, month.charged_usd_micros,
    books.available + books.held + month.charged_usd_micros AS base_usd_micros
FROM month, tenant_books($2::uuid) AS books (last_transfer_id, tail_rows, deposited, available, held, charged)
