-- A key that may do little must not become one that may do everything.
UPDATE api_keys SET revoked_at = coalesce(revoked_at, statement_timestamp()) WHERE limits_key_id IS NOT NULL;
ALTER TABLE api_keys DROP COLUMN limits_key_id, DROP COLUMN runs_per_minute, DROP COLUMN polls_per_minute,
    DROP COLUMN spend_max_usd_micros, DROP COLUMN spent_usd_micros;
