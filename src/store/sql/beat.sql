-- beat: renews all of a worker's leases at once. A run that does not come back is no longer its own.
UPDATE runs AS run
SET lease_expires_at = statement_timestamp() + ($1::bigint + $2::bigint) * interval '1 microsecond'
FROM (SELECT mine.run_id, mine.token
      FROM unnest($3::uuid[], $4::uuid[]) AS mine (run_id, token) ORDER BY mine.run_id) AS mine
WHERE run.run_id = mine.run_id AND run.lease_token = mine.token AND run.status IS NOT DISTINCT FROM 'PROCESSING'
    AND run.finalize_stage IS NULL
RETURNING run.run_id
