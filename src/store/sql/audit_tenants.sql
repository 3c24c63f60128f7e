-- audit_tenants: each tenant's balances summed from every transfer, held against snapshot plus tail.
WITH summed AS (
    SELECT tenant_id,
        sum(CASE WHEN debit_account = 'funding' THEN amount_usd_micros WHEN credit_account = 'funding' THEN -amount_usd_micros ELSE 0 END)::bigint AS deposited,
        sum(CASE WHEN credit_account = 'available' THEN amount_usd_micros WHEN debit_account = 'available' THEN -amount_usd_micros ELSE 0 END)::bigint AS available,
        sum(CASE WHEN credit_account = 'held' THEN amount_usd_micros WHEN debit_account = 'held' THEN -amount_usd_micros ELSE 0 END)::bigint AS held,
        sum(CASE WHEN credit_account = 'revenue' THEN amount_usd_micros WHEN debit_account = 'revenue' THEN -amount_usd_micros ELSE 0 END)::bigint AS charged
    FROM ledger_transfers GROUP BY tenant_id
)
SELECT summed.tenant_id, NULL::uuid AS run_id, finding.kind, finding.expected, finding.found, finding.detail
FROM summed, LATERAL tenant_books(summed.tenant_id) AS books, LATERAL (VALUES
    ('snapshot_deposited', summed.deposited, books.deposited, 'snapshot plus tail is not the sum of all transfers'),
    ('snapshot_available', summed.available, books.available, 'snapshot plus tail is not the sum of all transfers'),
    ('snapshot_held', summed.held, books.held, 'snapshot plus tail is not the sum of all transfers'),
    ('snapshot_charged', summed.charged, books.charged, 'snapshot plus tail is not the sum of all transfers'),
    ('overspent', greatest(summed.available, 0), summed.available, 'more was held and charged than was deposited')
) AS finding (kind, expected, found, detail)
WHERE finding.expected <> finding.found
LIMIT 10000
