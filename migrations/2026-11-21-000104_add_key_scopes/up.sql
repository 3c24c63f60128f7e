-- What a key may do, when it was last used, and whether it has a successor.
ALTER TABLE api_keys
    -- NULL may do everything, also what is added later.
    ADD COLUMN scopes text[],
    -- To the minute.
    ADD COLUMN last_used_at timestamptz,
    -- From here on it lives for its grace alone and has no second successor.
    ADD COLUMN rotated_at timestamptz,
    ADD CONSTRAINT api_keys_scopes_check CHECK (
        cardinality(scopes) > 0
        AND scopes <@ ARRAY['runs:write', 'runs:read', 'usage:read', 'keys:manage']);
