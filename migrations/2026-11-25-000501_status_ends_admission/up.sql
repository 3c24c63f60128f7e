-- A submit that waits for its tenant's lock reads the tenant again where a unique key has changed: the epoch,
-- and from here on the status too (submit_run.sql).
ALTER TABLE tenants
    DROP CONSTRAINT tenants_tenant_id_budget_epoch_key,
    ADD CONSTRAINT tenants_tenant_id_budget_epoch_status_key UNIQUE (tenant_id, budget_epoch, status);
