-- audit_tenants: one page of tenants, each with its books (newest snapshot plus tail) and its open runs, at one instant.
SELECT page.tenant_id, page.budget_epoch, books.last_transfer_id, books.tail_rows, books.available, books.held,
    open.runs AS open_runs, open.reserved AS open_reserved
FROM (SELECT tenant_id, budget_epoch FROM tenants WHERE tenant_id > $1::uuid ORDER BY tenant_id LIMIT $2::bigint) AS page
CROSS JOIN LATERAL tenant_books(page.tenant_id) AS books
CROSS JOIN LATERAL (
    SELECT count(*) AS runs, coalesce(sum(reserved_usd_micros), 0)::bigint AS reserved
    FROM runs WHERE runs.tenant_id = page.tenant_id AND status IN ('QUEUED', 'PROCESSING')
) AS open
ORDER BY page.tenant_id
