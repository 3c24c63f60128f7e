-- due_sends: runs whose message was perhaps never sent, or was lost. Marks them first, so that two reapers
-- seldom send the same, and only for a while: a reaper that dies now has sent nothing.
WITH due AS MATERIALIZED (
    SELECT run.run_id
    FROM runs AS run JOIN tenants AS tenant USING (tenant_id)
    WHERE run.status = 'QUEUED' AND tenant.status = 'ACTIVE'
        AND run.next_send_at <= statement_timestamp() + $1::bigint * interval '1 microsecond'
    ORDER BY run.next_send_at
    LIMIT $2::bigint
    FOR NO KEY UPDATE OF run SKIP LOCKED
)
UPDATE runs AS run
SET next_send_at = now.at + $3::bigint * interval '1 microsecond'
FROM due, (SELECT statement_timestamp() + $1::bigint * interval '1 microsecond' AS at) AS now
WHERE run.run_id = due.run_id AND run.status = 'QUEUED'
RETURNING run.run_id, run.tenant_id, run.pack_type, run.trace_id, run.next_send_at AS at
