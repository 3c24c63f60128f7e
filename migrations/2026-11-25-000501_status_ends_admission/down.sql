ALTER TABLE tenants
    DROP CONSTRAINT tenants_tenant_id_budget_epoch_status_key,
    ADD CONSTRAINT tenants_tenant_id_budget_epoch_key UNIQUE (tenant_id, budget_epoch);
