-- audit_runs: every run whose ledger rows are not exactly what its state calls for, and every ledger
-- row of a run that is not there. One statement, so one snapshot, also while others write.
WITH booked AS (
    SELECT run_id, min(tenant_id::text)::uuid AS tenant_id, count(DISTINCT tenant_id) AS tenants,
        coalesce(sum(amount_usd_micros) FILTER (WHERE kind = 'hold'), 0)::bigint AS hold,
        coalesce(sum(amount_usd_micros) FILTER (WHERE kind = 'charge'), 0)::bigint AS charge,
        coalesce(sum(amount_usd_micros) FILTER (WHERE kind = 'release'), 0)::bigint AS release
    FROM ledger_transfers WHERE run_id IS NOT NULL AND kind <> 'adjust' GROUP BY run_id
), compared AS (
    SELECT coalesce(run.run_id, booked.run_id) AS run_id, coalesce(run.tenant_id, booked.tenant_id) AS tenant_id,
        run.status,
        run.run_id IS NULL AS run_missing,
        booked.tenants > 1 OR booked.tenant_id <> run.tenant_id AS tenant_differs,
        coalesce(run.reserved_usd_micros, 0) AS expected_hold,
        coalesce(run.actual_cost_usd_micros, 0) AS expected_charge,
        CASE WHEN run.actual_cost_usd_micros IS NULL THEN 0
            ELSE run.reserved_usd_micros - run.actual_cost_usd_micros END AS expected_release,
        coalesce(booked.hold, 0) AS hold, coalesce(booked.charge, 0) AS charge, coalesce(booked.release, 0) AS release
    FROM runs AS run FULL JOIN booked ON booked.run_id = run.run_id
)
SELECT compared.tenant_id, compared.run_id, finding.kind, finding.expected, finding.found, finding.detail
FROM compared, LATERAL (VALUES
    ('hold', expected_hold, hold, 'the ledger''s hold is not the run''s reservation'),
    ('charge', expected_charge, charge, 'the ledger''s charge is not the run''s cost'),
    ('release', expected_release, release, 'the ledger''s release is not what the run returned')
) AS finding (kind, expected, found, detail)
WHERE finding.expected <> finding.found
UNION ALL
SELECT tenant_id, run_id, 'tenant', expected_hold, hold, 'the ledger books this run to another tenant'
FROM compared WHERE tenant_differs
UNION ALL
SELECT tenant_id, run_id, 'audit_required', reserved_usd_micros, reserved_usd_micros, reason_detail
FROM runs WHERE money_state = 'AUDIT_REQUIRED'
LIMIT 10000
