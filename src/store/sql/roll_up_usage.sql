-- roll_up_usage: adds the ledger between the tenant's mark and a snapshot to the days that it belongs
-- to, and moves the mark, in one statement. Of two reapers the second finds the mark moved and adds nothing.
--
-- A snapshot was taken under the tenant's exclusive lock, so every transfer up to it is committed, however
-- late; a maximum read here would not say that. A run counts by its charge, or, where it cost nothing, by
-- its release: once, also where a step ends between the two. OFFSET 0 keeps the planner, which cannot know
-- how short the tail is, from reading all runs for it.
WITH mark AS (
    SELECT coalesce((SELECT last_transfer_id FROM tenant_usage_marks WHERE tenant_id = $1::uuid), 0) AS rolled,
        (SELECT max(last_transfer_id) FROM ledger_snapshots WHERE tenant_id = $1::uuid) AS safe
), step AS MATERIALIZED (
    SELECT mark.rolled, mark.safe, coalesce((
        SELECT transfer_id FROM ledger_transfers
        WHERE tenant_id = $1::uuid AND transfer_id > mark.rolled AND transfer_id <= mark.safe
        ORDER BY transfer_id OFFSET $2::bigint LIMIT 1), mark.safe) AS through
    FROM mark WHERE mark.safe > mark.rolled
), moved AS (
    INSERT INTO tenant_usage_marks AS mark (tenant_id, last_transfer_id, rolled_up_at)
    SELECT $1::uuid, step.through, statement_timestamp() + $3::bigint * interval '1 microsecond' FROM step
    ON CONFLICT (tenant_id) DO UPDATE
    SET last_transfer_id = excluded.last_transfer_id, rolled_up_at = excluded.rolled_up_at
    WHERE mark.last_transfer_id = (SELECT step.rolled FROM step)
    RETURNING mark.last_transfer_id
), days AS (
    INSERT INTO tenant_usage_daily AS day (tenant_id, usage_date, pack_type, runs, charged_usd_micros)
    SELECT $1::uuid, (transfer.created_at AT TIME ZONE 'UTC')::date, run.pack_type,
        count(*), coalesce(sum(transfer.amount_usd_micros) FILTER (WHERE transfer.kind = 'charge'), 0)::bigint
    FROM step, moved, ledger_transfers AS transfer, LATERAL (
        SELECT pack_type, actual_cost_usd_micros FROM runs WHERE run_id = transfer.run_id OFFSET 0) AS run
    WHERE transfer.tenant_id = $1::uuid AND transfer.transfer_id > step.rolled
        AND transfer.transfer_id <= moved.last_transfer_id
        AND (transfer.kind = 'charge' OR transfer.kind = 'release' AND run.actual_cost_usd_micros = 0)
    GROUP BY 2, 3
    ON CONFLICT (tenant_id, usage_date, pack_type) DO UPDATE
    SET runs = day.runs + excluded.runs, charged_usd_micros = day.charged_usd_micros + excluded.charged_usd_micros
)
SELECT moved.last_transfer_id < step.safe AS more FROM moved, step
