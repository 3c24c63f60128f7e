-- due_sends: runs whose message was perhaps never sent, or was lost. Marks them first, each time for
-- longer, so that a deep queue is not flooded with copies; a copy is harmless.
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
SET next_send_at = now.at + least(greatest(now.at - run.created_at, $3::bigint * interval '1 microsecond'), interval '1 hour')
FROM due, (SELECT statement_timestamp() + $1::bigint * interval '1 microsecond' AS at) AS now
WHERE run.run_id = due.run_id AND run.status = 'QUEUED'
RETURNING run.run_id, run.tenant_id, run.pack_type, run.trace_id, run.next_send_at AS at
