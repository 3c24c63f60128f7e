-- requeue_run: back to QUEUED for another attempt. The hold stays; nothing is charged. A run that its buyer
-- wishes to stop never waits again: whoever would put it back has lost, and the reaper ends it.
UPDATE runs
SET status = 'QUEUED', attempts = attempts - $1::integer, version = version + 1,
    next_send_at = statement_timestamp() + $2::bigint * interval '1 microsecond',
    lease_token = NULL, lease_expires_at = NULL, finalize_stage = NULL, finalize_token = NULL, claimed_at = NULL,
    claim_cost_usd_micros = NULL, result_key = NULL, result_sha256 = NULL
WHERE run_id = $3::uuid AND version = $4::bigint AND status IS NOT DISTINCT FROM 'PROCESSING' AND money_state = 'RESERVED'
    AND lease_token IS NOT DISTINCT FROM $5::uuid
    AND finalize_stage IS NOT DISTINCT FROM $6::text
    AND cancel_requested_at IS NULL
    AND ($7::uuid IS NULL OR finalize_token = $7::uuid)
    AND ($8::timestamptz IS NULL OR lease_expires_at = $8::timestamptz)
RETURNING run_id
