DROP TABLE tenant_usage_daily, ledger_snapshots, ledger_transfers, runs, api_keys, tenant_plans, tenants, plans;
DROP FUNCTION tenant_books, refuse_change;
DROP SEQUENCE budget_epoch_seq;
