-- due_sends: runs whose message was perhaps never sent, or was lost. Marks them first, so that two reapers
-- seldom send the same, and only for a while: a reaper that dies now has sent nothing. When the queue is
-- empty, every run that has waited for a while has lost its message, whatever was put off.
WITH now AS MATERIALIZED (
    SELECT statement_timestamp() + $1::bigint * interval '1 microsecond' AS at, $2::integer = 1 AS starving,
        $3::bigint * interval '1 microsecond' AS resend_after
), due AS MATERIALIZED (
    SELECT run.run_id
    FROM now, runs AS run JOIN tenants AS tenant USING (tenant_id)
    WHERE run.status = 'QUEUED' AND tenant.status = 'ACTIVE'
        -- What an index can see of the condition below it.
        AND run.next_send_at <= CASE WHEN $2::integer = 1 THEN 'infinity'::timestamptz
            ELSE statement_timestamp() + $1::bigint * interval '1 microsecond' END
        AND (run.next_send_at <= now.at
            OR now.starving AND run.created_at <= now.at - now.resend_after
                AND run.next_send_at > now.at + now.resend_after)
    ORDER BY run.next_send_at
    LIMIT $4::bigint
    FOR NO KEY UPDATE OF run SKIP LOCKED
)
UPDATE runs AS run
SET next_send_at = now.at + now.resend_after
FROM due, now
WHERE run.run_id = due.run_id AND run.status = 'QUEUED'
RETURNING run.run_id, run.tenant_id, run.pack_type, run.trace_id, run.next_send_at AS at
