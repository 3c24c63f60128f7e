-- statement: a page of a tenant's ledger, newest first, with what could be spent after each entry.
--
-- The newest snapshot at or below the page, plus what lies between, gives the balance after the page's first
-- entry; from there each entry undoes itself. So a page costs the same however far back it lies.
WITH page AS MATERIALIZED (
    SELECT transfer_id, kind, debit_account, credit_account, amount_usd_micros, run_id, reference, created_at,
        CASE WHEN credit_account = 'available' THEN amount_usd_micros
            WHEN debit_account = 'available' THEN -amount_usd_micros ELSE 0 END AS change
    FROM ledger_transfers WHERE tenant_id = $1::uuid AND transfer_id < $2::bigint
    ORDER BY transfer_id DESC LIMIT $3::bigint
), base AS MATERIALIZED (
    SELECT last_transfer_id, available_usd_micros FROM ledger_snapshots
    WHERE tenant_id = $1::uuid AND last_transfer_id <= (SELECT max(transfer_id) FROM page)
    ORDER BY last_transfer_id DESC LIMIT 1
), top AS MATERIALIZED (
    SELECT coalesce((SELECT available_usd_micros FROM base), 0)
        + coalesce(sum(amount_usd_micros) FILTER (WHERE credit_account = 'available'), 0)
        - coalesce(sum(amount_usd_micros) FILTER (WHERE debit_account = 'available'), 0) AS available
    FROM ledger_transfers
    WHERE tenant_id = $1::uuid AND transfer_id > coalesce((SELECT last_transfer_id FROM base), 0)
        AND transfer_id <= (SELECT max(transfer_id) FROM page)
)
SELECT transfer_id, kind, debit_account, credit_account, amount_usd_micros, run_id, reference, created_at,
    (top.available - coalesce(sum(change) OVER (
        ORDER BY transfer_id DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0))::bigint AS available_usd_micros
FROM page, top ORDER BY transfer_id DESC
