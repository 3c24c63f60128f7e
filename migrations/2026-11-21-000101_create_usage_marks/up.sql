-- How far tenant_usage_daily follows the ledger, for each tenant: a day's usage is what that table
-- holds plus the charges beyond the mark. The mark is always that of a ledger snapshot or below it, so
-- no transfer with a smaller id can still be uncommitted.
CREATE TABLE tenant_usage_marks (
    tenant_id        uuid        NOT NULL CONSTRAINT tenant_usage_marks_pkey PRIMARY KEY
        CONSTRAINT tenant_usage_marks_tenant_id_fkey REFERENCES tenants,
    last_transfer_id bigint      NOT NULL,
    rolled_up_at     timestamptz NOT NULL
);
