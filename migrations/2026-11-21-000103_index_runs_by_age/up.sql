-- For lists, newest first. Runs past their retention leave it, so a page costs no more for a long history.
CREATE INDEX CONCURRENTLY IF NOT EXISTS runs_tenant_id_created_at_run_id_idx ON runs (tenant_id, created_at, run_id) WHERE purged_at IS NULL;
