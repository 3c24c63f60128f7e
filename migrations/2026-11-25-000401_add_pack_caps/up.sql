-- The most that one run may reserve, by pack, beside the plan's own limit: {"decision": 5000000}. One column
-- and no table, so that a plan changes in one row.
ALTER TABLE plans
    ADD COLUMN pack_cost_max_usd_micros jsonb NOT NULL DEFAULT '{}',
    -- Each is what a run can reserve, and four decimals show it.
    ADD CONSTRAINT plans_pack_cost_max_usd_micros_check CHECK (
        jsonb_typeof(pack_cost_max_usd_micros) = 'object'
        AND NOT pack_cost_max_usd_micros
            @? 'strict $.* ? (@.type() != "number" || @ < 5000 || @ > 10000000000 || @ % 100 != 0)');
