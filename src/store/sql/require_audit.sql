-- require_audit: parks a contradiction for a person. The hold stays.
UPDATE runs
SET money_state = 'AUDIT_REQUIRED', reason_code = 'audit_required', reason_detail = $1::text, version = version + 1
WHERE run_id = $2::uuid AND version = $3::bigint AND finalize_stage IS NOT DISTINCT FROM 'CLAIMED' AND finalize_token = $4::uuid
    AND money_state = 'RESERVED'
RETURNING run_id
