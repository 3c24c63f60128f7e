-- take_runs: leases every one of these runs that is waiting and whose tenant may work.
-- Rows are locked in one order, so that two workers with the same messages cannot deadlock.
WITH waiting AS MATERIALIZED (
    SELECT run.run_id
    FROM runs AS run JOIN tenants AS tenant USING (tenant_id)
    WHERE run.run_id = ANY($1::uuid[]) AND run.status IS NOT DISTINCT FROM 'QUEUED' AND tenant.status = 'ACTIVE'
    ORDER BY run.run_id
    FOR NO KEY UPDATE OF run SKIP LOCKED
)
UPDATE runs AS run
SET status = 'PROCESSING', version = version + 1, attempts = attempts + 1, lease_token = gen_random_uuid(),
    lease_expires_at = now.at + $2::bigint * interval '1 microsecond', started_at = coalesce(started_at, now.at)
FROM waiting, (SELECT statement_timestamp() + $3::bigint * interval '1 microsecond' AS at) AS now
WHERE run.run_id = waiting.run_id AND run.status IS NOT DISTINCT FROM 'QUEUED'
RETURNING run.run_id, run.tenant_id, run.pack_type, run.inputs, run.reserved_usd_micros, run.minimum_fee_usd_micros,
    run.timebox_secs, run.attempts, run.trace_id, run.version, run.lease_token
