-- claim_run: the right to upload and finish. Ends the lease; from here on the claim's age counts.
UPDATE runs
SET finalize_stage = 'CLAIMED', finalize_token = $1::uuid, result_key = $2::text, result_sha256 = $3::text,
    claim_cost_usd_micros = $4::bigint, claimed_at = statement_timestamp() + $5::bigint * interval '1 microsecond',
    lease_token = NULL, lease_expires_at = NULL, version = version + 1
WHERE run_id = $6::uuid AND version = $7::bigint AND lease_token = $8::uuid AND status IS NOT DISTINCT FROM 'PROCESSING'
    AND finalize_stage IS NULL
RETURNING claimed_at, version
