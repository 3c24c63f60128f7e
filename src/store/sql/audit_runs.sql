-- audit_runs: in one range of run ids, each run whose ledger rows are not exactly those that its state calls for,
-- each ledger row whose run is not there, and each run that waits for a person. A run and its rows change in one
-- statement, so they agree in every snapshot, and the ranges need not be of one instant.
WITH run AS (
    SELECT run_id, tenant_id, status, money_state, reserved_usd_micros AS reserved, actual_cost_usd_micros AS cost,
        claim_cost_usd_micros AS claim_cost, reason_detail
    FROM runs WHERE run_id > $1::uuid AND run_id <= $2::uuid
), booked AS (
    SELECT run_id, tenant_id,
        count(*) FILTER (WHERE kind = 'hold') AS holds,
        coalesce(sum(amount_usd_micros) FILTER (WHERE kind = 'hold'), 0)::bigint AS hold,
        count(*) FILTER (WHERE kind = 'charge') AS charges,
        coalesce(sum(amount_usd_micros) FILTER (WHERE kind = 'charge'), 0)::bigint AS charge,
        count(*) FILTER (WHERE kind = 'release') AS releases,
        coalesce(sum(amount_usd_micros) FILTER (WHERE kind = 'release'), 0)::bigint AS release
    FROM ledger_transfers
    WHERE run_id > $1::uuid AND run_id <= $2::uuid AND kind IN ('hold', 'charge', 'release')
    GROUP BY run_id, tenant_id
), compared AS (
    SELECT coalesce(run.run_id, booked.run_id) AS run_id, coalesce(run.tenant_id, booked.tenant_id) AS tenant_id,
        run.run_id IS NULL AS astray,
        coalesce(run.cost IS NOT NULL AND booked.holds > 0 AND booked.charges = 0 AND booked.releases = 0, false) AS hold_open,
        coalesce(run.reserved, 0) AS expected_hold, coalesce(booked.hold, 0) AS hold, coalesce(booked.holds, 0) AS holds,
        coalesce(run.cost, 0) AS expected_charge, coalesce(booked.charge, 0) AS charge, coalesce(booked.charges, 0) AS charges,
        coalesce(run.reserved - run.cost, 0) AS expected_release, coalesce(booked.release, 0) AS release,
        coalesce(booked.releases, 0) AS releases
    FROM run FULL JOIN booked ON booked.run_id = run.run_id AND booked.tenant_id = run.tenant_id
)
SELECT tenant_id, run_id, entry || CASE
        WHEN astray AND EXISTS (SELECT FROM runs WHERE runs.run_id = compared.run_id) THEN '_of_another_tenant'
        WHEN astray THEN '_without_run'
        WHEN rows > 1 THEN '_twice'
        WHEN found = 0 THEN '_missing'
        WHEN expected = 0 THEN '_unexpected'
        ELSE '_amount' END AS kind,
    expected, found, detail
FROM compared, LATERAL (VALUES
    ('hold', expected_hold, hold, holds, 'the ledger''s hold is not the run''s reservation'),
    ('charge', expected_charge, charge, charges, 'the ledger''s charge is not the run''s cost'),
    ('release', expected_release, release, releases, 'the ledger''s release is not what the run returned')
) AS line (entry, expected, found, rows, detail)
WHERE (expected <> found OR rows > 1) AND NOT (hold_open AND entry IN ('charge', 'release'))
UNION ALL
SELECT tenant_id, run_id, 'hold_open', 0, hold, 'the run has ended and its hold has not' FROM compared WHERE hold_open
UNION ALL
SELECT tenant_id, run_id, 'claim_cost', coalesce(claim_cost, 0), cost, 'the run''s cost is not what was claimed with its result'
FROM run WHERE status = 'COMPLETED' AND claim_cost IS DISTINCT FROM cost
UNION ALL
SELECT tenant_id, run_id, 'audit_required', reserved, reserved, reason_detail FROM run WHERE money_state = 'AUDIT_REQUIRED'
LIMIT 10000
