-- due_sends: runs whose message was perhaps never sent, or was lost. Marks them first, each time for
-- longer, so that a deep queue is not flooded with copies; a copy is harmless. When the queue is empty,
-- every run that has waited for a while has lost its message, whatever was marked.
WITH now AS MATERIALIZED (
    SELECT statement_timestamp() + $1::bigint * interval '1 microsecond' AS at, $2::integer = 1 AS starving,
        $3::bigint * interval '1 microsecond' AS resend_after
), due AS MATERIALIZED (
    SELECT run.run_id
    FROM now, runs AS run JOIN tenants AS tenant USING (tenant_id)
    WHERE run.status = 'QUEUED' AND tenant.status = 'ACTIVE'
        AND (run.next_send_at <= now.at
            OR now.starving AND run.created_at <= now.at - now.resend_after
                AND run.next_send_at > now.at + now.resend_after)
    ORDER BY run.next_send_at
    LIMIT $4::bigint
    FOR NO KEY UPDATE OF run SKIP LOCKED
)
UPDATE runs AS run
SET next_send_at = now.at + CASE WHEN now.starving THEN now.resend_after
    ELSE least(greatest(now.at - run.created_at, now.resend_after), interval '1 hour') END
FROM due, now
WHERE run.run_id = due.run_id AND run.status = 'QUEUED'
RETURNING run.run_id, run.tenant_id, run.pack_type, run.trace_id, run.next_send_at AS at
