-- For lists of what did not complete, newest first. Runs that complete never enter it.
CREATE INDEX CONCURRENTLY IF NOT EXISTS runs_tenant_id_status_created_at_run_id_idx ON runs (tenant_id, status, created_at, run_id)
    WHERE purged_at IS NULL AND status IN ('FAILED', 'EXPIRED', 'CANCELLED');
