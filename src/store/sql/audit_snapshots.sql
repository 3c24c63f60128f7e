-- audit_snapshots: each snapshot of one page, and what it should be: the one before it plus every transfer in between.
-- A snapshot is taken under the tenant's lock, so nothing is ever inserted below it.
SELECT page.tenant_id, page.last_transfer_id,
    page.deposited_usd_micros AS deposited, page.available_usd_micros AS available,
    page.held_usd_micros AS held, page.charged_usd_micros AS charged,
    (coalesce(prior.deposited_usd_micros, 0) + step.deposited)::bigint AS expected_deposited,
    (coalesce(prior.available_usd_micros, 0) + step.available)::bigint AS expected_available,
    (coalesce(prior.held_usd_micros, 0) + step.held)::bigint AS expected_held,
    (coalesce(prior.charged_usd_micros, 0) + step.charged)::bigint AS expected_charged
FROM (
    SELECT * FROM ledger_snapshots WHERE (tenant_id, last_transfer_id) > ($1::uuid, $2::bigint)
    ORDER BY tenant_id, last_transfer_id LIMIT $3::bigint
) AS page
LEFT JOIN LATERAL (
    SELECT * FROM ledger_snapshots AS earlier
    WHERE earlier.tenant_id = page.tenant_id AND earlier.last_transfer_id < page.last_transfer_id
    ORDER BY earlier.last_transfer_id DESC LIMIT 1
) AS prior ON true
CROSS JOIN LATERAL (
    SELECT coalesce(sum(amount_usd_micros) FILTER (WHERE debit_account = 'funding'), 0)
            - coalesce(sum(amount_usd_micros) FILTER (WHERE credit_account = 'funding'), 0) AS deposited,
        coalesce(sum(amount_usd_micros) FILTER (WHERE credit_account = 'available'), 0)
            - coalesce(sum(amount_usd_micros) FILTER (WHERE debit_account = 'available'), 0) AS available,
        coalesce(sum(amount_usd_micros) FILTER (WHERE credit_account = 'held'), 0)
            - coalesce(sum(amount_usd_micros) FILTER (WHERE debit_account = 'held'), 0) AS held,
        coalesce(sum(amount_usd_micros) FILTER (WHERE credit_account = 'revenue'), 0)
            - coalesce(sum(amount_usd_micros) FILTER (WHERE debit_account = 'revenue'), 0) AS charged
    FROM ledger_transfers AS transfer
    WHERE transfer.tenant_id = page.tenant_id AND transfer.transfer_id > coalesce(prior.last_transfer_id, 0)
        AND transfer.transfer_id <= page.last_transfer_id
) AS step
ORDER BY page.tenant_id, page.last_transfer_id
