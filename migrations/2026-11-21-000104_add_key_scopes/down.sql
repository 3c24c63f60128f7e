-- A key that may do little must not become one that may do everything.
UPDATE api_keys SET revoked_at = coalesce(revoked_at, statement_timestamp()) WHERE scopes IS NOT NULL;
ALTER TABLE api_keys DROP COLUMN scopes, DROP COLUMN last_used_at, DROP COLUMN rotated_at;
