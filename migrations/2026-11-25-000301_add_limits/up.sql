-- Limits of a key's own. A key that is given some is the root of a family: its successors and the keys that
-- are made with it name it and live under its limits together, so that no key multiplies what it has.
ALTER TABLE api_keys
    -- The root; NULL for a key without limits of its own.
    ADD COLUMN limits_key_id uuid CONSTRAINT api_keys_limits_key_id_fkey REFERENCES api_keys,
    -- The limits: they never change, and each of the family has a copy. In requests, 0 means without limit;
    -- NULL dollars are without limit.
    ADD COLUMN runs_per_minute integer NOT NULL DEFAULT 0,
    ADD COLUMN polls_per_minute integer NOT NULL DEFAULT 0,
    ADD COLUMN spend_max_usd_micros bigint,
    -- What the family's runs have cost and hold, on the root alone: it rises with a hold and falls with a
    -- release, in the statements that post them (submit_run, end_run).
    ADD COLUMN spent_usd_micros bigint NOT NULL DEFAULT 0,
    ADD CONSTRAINT api_keys_limits_check CHECK (
        runs_per_minute >= 0 AND polls_per_minute >= 0 AND spend_max_usd_micros > 0
        AND (limits_key_id IS NOT NULL
            OR runs_per_minute = 0 AND polls_per_minute = 0 AND spend_max_usd_micros IS NULL)),
    -- Refuses the submit that would pass the cap, and with it its run and hold: they are one statement.
    ADD CONSTRAINT api_keys_spent_check CHECK (spent_usd_micros <= spend_max_usd_micros);
