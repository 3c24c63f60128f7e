-- audit_keys: what the keys that may spend so much and no more have spent, held against their families' runs,
-- for a range of tenants. A run and what its key has spent change in one statement, so every snapshot agrees.
WITH root AS (
    SELECT key_id, tenant_id, spent_usd_micros FROM api_keys
    WHERE tenant_id BETWEEN $1::uuid AND $2::uuid AND key_id = limits_key_id AND spend_max_usd_micros IS NOT NULL
), booked AS (
    SELECT root.key_id, sum(coalesce(run.actual_cost_usd_micros, run.reserved_usd_micros))::bigint AS spent
    FROM root JOIN api_keys AS key ON key.tenant_id = root.tenant_id AND key.limits_key_id = root.key_id
    JOIN runs AS run ON run.tenant_id = root.tenant_id AND run.key_id = key.key_id
    GROUP BY 1
)
SELECT root.tenant_id, NULL::uuid AS run_id, 'key_spent' AS kind, coalesce(booked.spent, 0) AS expected,
    root.spent_usd_micros AS found,
    format('key %s and those made with it have spent and hold another sum than it says', root.key_id) AS detail
FROM root LEFT JOIN booked USING (key_id)
WHERE coalesce(booked.spent, 0) <> root.spent_usd_micros
LIMIT 10000
