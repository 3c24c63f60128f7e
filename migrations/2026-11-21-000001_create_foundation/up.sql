-- The foundation: tenants, keys, plans, runs and the double-entry ledger.
-- Every constraint and index is named by hand: <table>_<columns>_<kind>.

-- Raised whenever a tenant's budget is computed anew. A sequence does not go back with a rollback, so a
-- late write of an older computation is always recognised. (After a crash it may: see raise_epoch.)
CREATE SEQUENCE budget_epoch_seq AS bigint;

CREATE TABLE plans (
    plan                         text    NOT NULL CONSTRAINT plans_pkey PRIMARY KEY,
    -- NULL allows every pack.
    allowed_packs                text[],
    -- In all limits, 0 means without limit.
    run_cost_max_usd_micros      bigint  NOT NULL,
    runs_per_minute              integer NOT NULL,
    polls_per_minute             integer NOT NULL,
    concurrent_runs_max          integer NOT NULL,
    monthly_spend_max_usd_micros bigint  NOT NULL,
    timebox_secs_max             integer NOT NULL,
    retention_days               integer NOT NULL,
    CONSTRAINT plans_limits_check CHECK (
        run_cost_max_usd_micros >= 0 AND runs_per_minute >= 0 AND polls_per_minute >= 0
        AND concurrent_runs_max >= 0 AND monthly_spend_max_usd_micros >= 0
        AND timebox_secs_max BETWEEN 1 AND 86400 AND retention_days BETWEEN 1 AND 3660)
);

INSERT INTO plans VALUES
    ('sandbox',    NULL,     1000000,  30,  120,   2,     20000000,   60,  3),
    ('starter',    NULL,    10000000, 120,  600,  10,    500000000,  300, 14),
    ('growth',     NULL,   100000000, 600, 3000,  50,  10000000000,  900, 30),
    ('enterprise', NULL,           0,   0,    0,   0,            0, 3600, 90);

CREATE TABLE tenants (
    tenant_id    uuid        NOT NULL CONSTRAINT tenants_pkey PRIMARY KEY,
    name         text        NOT NULL,
    status       text        NOT NULL DEFAULT 'ACTIVE',
    budget_epoch bigint      NOT NULL DEFAULT nextval('budget_epoch_seq'),
    created_at   timestamptz NOT NULL,
    -- Not for look-ups: it makes the epoch part of a key, so that raising it conflicts with FOR KEY
    -- SHARE. Without it that lock is granted on the old version of the row, and a hold admitted under
    -- an ended epoch would be inserted.
    CONSTRAINT tenants_tenant_id_budget_epoch_key UNIQUE (tenant_id, budget_epoch),
    CONSTRAINT tenants_name_check CHECK (length(name) BETWEEN 1 AND 200),
    CONSTRAINT tenants_status_check CHECK (status IN ('ACTIVE', 'SUSPENDED'))
);

CREATE TABLE tenant_plans (
    tenant_id   uuid        NOT NULL CONSTRAINT tenant_plans_tenant_id_fkey REFERENCES tenants,
    plan        text        NOT NULL CONSTRAINT tenant_plans_plan_fkey REFERENCES plans,
    assigned_at timestamptz NOT NULL,
    ended_at    timestamptz,
    CONSTRAINT tenant_plans_pkey PRIMARY KEY (tenant_id, assigned_at)
);
CREATE UNIQUE INDEX tenant_plans_tenant_id_active_key ON tenant_plans (tenant_id) WHERE ended_at IS NULL;

CREATE TABLE api_keys (
    key_id     uuid        NOT NULL CONSTRAINT api_keys_pkey PRIMARY KEY,
    tenant_id  uuid        NOT NULL CONSTRAINT api_keys_tenant_id_fkey REFERENCES tenants,
    label      text        NOT NULL,
    -- The secret itself is never stored.
    key_sha256 bytea       NOT NULL CONSTRAINT api_keys_key_sha256_key UNIQUE,
    created_at timestamptz NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz,
    CONSTRAINT api_keys_label_check CHECK (length(label) <= 200),
    CONSTRAINT api_keys_key_sha256_check CHECK (length(key_sha256) = 32)
);
CREATE INDEX api_keys_tenant_id_idx ON api_keys (tenant_id, created_at);

CREATE TABLE runs (
    run_id                uuid        NOT NULL CONSTRAINT runs_pkey PRIMARY KEY,
    tenant_id             uuid        NOT NULL CONSTRAINT runs_tenant_id_fkey REFERENCES tenants,
    key_id                uuid        NOT NULL CONSTRAINT runs_key_id_fkey REFERENCES api_keys,
    pack_type             text        NOT NULL,
    idempotency_key       text        NOT NULL,
    payload_sha256        bytea       NOT NULL,
    -- json, not jsonb: kept to the letter, and jsonb cannot hold \u0000. NULL once past retention.
    inputs                json,
    metadata              json        NOT NULL,
    trace_id              text        NOT NULL,
    reserved_usd_micros   bigint      NOT NULL,
    minimum_fee_usd_micros bigint     NOT NULL,
    actual_cost_usd_micros bigint,
    timebox_secs          integer     NOT NULL,
    attempts              integer     NOT NULL DEFAULT 0,
    version               bigint      NOT NULL DEFAULT 1,
    status                text        NOT NULL DEFAULT 'QUEUED',
    money_state           text        NOT NULL DEFAULT 'RESERVED',
    finalize_stage        text,
    lease_token           uuid,
    lease_expires_at      timestamptz,
    finalize_token        uuid,
    claimed_at            timestamptz,
    claim_cost_usd_micros bigint,
    result_key            text,
    result_sha256         text,
    -- Why it failed or expired, or what a person has to look at.
    reason_code           text,
    reason_detail         text,
    created_at            timestamptz NOT NULL,
    -- While QUEUED: when the reaper sends its message (again), unless a worker has taken it.
    next_send_at          timestamptz NOT NULL,
    started_at            timestamptz,
    completed_at          timestamptz,
    retention_until       timestamptz,
    purged_at             timestamptz,
    CONSTRAINT runs_tenant_id_idempotency_key_key UNIQUE (tenant_id, idempotency_key),
    CONSTRAINT runs_amounts_check CHECK (
        reserved_usd_micros BETWEEN 5000 AND 10000000000
        AND minimum_fee_usd_micros BETWEEN 1 AND reserved_usd_micros
        AND actual_cost_usd_micros BETWEEN 0 AND reserved_usd_micros
        AND claim_cost_usd_micros BETWEEN 0 AND reserved_usd_micros
        AND reserved_usd_micros % 100 = 0 AND minimum_fee_usd_micros % 100 = 0
        AND actual_cost_usd_micros % 100 = 0),
    CONSTRAINT runs_attempts_check CHECK (attempts >= 0),
    CONSTRAINT runs_lease_check CHECK ((lease_token IS NULL) = (lease_expires_at IS NULL)),
    CONSTRAINT runs_claim_check CHECK (
        finalize_stage IS NULL OR (finalize_token IS NOT NULL AND claimed_at IS NOT NULL
            AND claim_cost_usd_micros IS NOT NULL AND result_key IS NOT NULL AND result_sha256 IS NOT NULL)),
    CONSTRAINT runs_reason_check CHECK ((reason_code IS NULL) = (reason_detail IS NULL)),
    -- The legal states, and what exists in each. src/store/row.rs reads them.
    CONSTRAINT runs_state_check CHECK (CASE status
        WHEN 'QUEUED' THEN money_state = 'RESERVED' AND finalize_stage IS NULL AND lease_token IS NULL
        WHEN 'PROCESSING' THEN CASE
            WHEN finalize_stage IS NULL THEN money_state = 'RESERVED' AND lease_token IS NOT NULL
            ELSE finalize_stage = 'CLAIMED' AND lease_token IS NULL
                AND (money_state = 'RESERVED' OR money_state = 'AUDIT_REQUIRED' AND reason_detail IS NOT NULL) END
        WHEN 'COMPLETED' THEN finalize_stage IS NULL AND lease_token IS NULL
            AND result_key IS NOT NULL AND result_sha256 IS NOT NULL
        WHEN 'FAILED' THEN finalize_stage IS NULL AND lease_token IS NULL AND reason_code IS NOT NULL
        WHEN 'EXPIRED' THEN finalize_stage IS NULL AND lease_token IS NULL AND reason_code IS NOT NULL
            AND actual_cost_usd_micros = 0
        WHEN 'CANCELLED' THEN finalize_stage IS NULL AND lease_token IS NULL
        ELSE false END),
    CONSTRAINT runs_end_check CHECK (CASE WHEN status IN ('QUEUED', 'PROCESSING')
        THEN completed_at IS NULL AND retention_until IS NULL AND actual_cost_usd_micros IS NULL AND purged_at IS NULL
        ELSE completed_at IS NOT NULL AND retention_until IS NOT NULL AND actual_cost_usd_micros IS NOT NULL
            AND money_state = CASE WHEN actual_cost_usd_micros > 0 THEN 'SETTLED' ELSE 'REFUNDED' END END)
);
-- One for each scan that the reaper repeats; each holds open work only, so it stays small.
CREATE INDEX runs_open_idx ON runs (tenant_id) WHERE status IN ('QUEUED', 'PROCESSING');
CREATE INDEX runs_queued_idx ON runs (next_send_at) WHERE status = 'QUEUED';
CREATE INDEX runs_leased_idx ON runs (lease_expires_at) WHERE status = 'PROCESSING' AND finalize_stage IS NULL;
CREATE INDEX runs_claimed_idx ON runs (claimed_at)
    WHERE status = 'PROCESSING' AND finalize_stage = 'CLAIMED' AND money_state = 'RESERVED';
CREATE INDEX runs_retained_idx ON runs (retention_until) WHERE retention_until IS NOT NULL AND purged_at IS NULL;

-- Double entry by construction: one row takes an amount from one account and gives it to another.
-- `available` and `held` belong to the row's tenant, `funding` and `revenue` to the platform.
CREATE TABLE ledger_transfers (
    transfer_id       bigint      GENERATED ALWAYS AS IDENTITY CONSTRAINT ledger_transfers_pkey PRIMARY KEY,
    tenant_id         uuid        NOT NULL CONSTRAINT ledger_transfers_tenant_id_fkey REFERENCES tenants,
    kind              text        NOT NULL,
    debit_account     text        NOT NULL,
    credit_account    text        NOT NULL,
    amount_usd_micros bigint      NOT NULL,
    run_id            uuid        CONSTRAINT ledger_transfers_run_id_fkey REFERENCES runs,
    reference         text,
    created_at        timestamptz NOT NULL,
    CONSTRAINT ledger_transfers_amount_check CHECK (amount_usd_micros > 0),
    CONSTRAINT ledger_transfers_kind_check CHECK (CASE kind
        WHEN 'deposit' THEN debit_account = 'funding' AND credit_account = 'available'
            AND run_id IS NULL AND reference IS NOT NULL
        WHEN 'hold' THEN debit_account = 'available' AND credit_account = 'held' AND run_id IS NOT NULL
        WHEN 'charge' THEN debit_account = 'held' AND credit_account = 'revenue' AND run_id IS NOT NULL
        WHEN 'release' THEN debit_account = 'held' AND credit_account = 'available' AND run_id IS NOT NULL
        WHEN 'adjust' THEN debit_account <> credit_account AND reference IS NOT NULL
            AND debit_account IN ('funding', 'available', 'held', 'revenue')
            AND credit_account IN ('funding', 'available', 'held', 'revenue')
        ELSE false END),
    CONSTRAINT ledger_transfers_reference_check CHECK (length(reference) BETWEEN 1 AND 255)
);
-- A hold is made once and ends once; a deposit counts once. No code can post a second.
CREATE UNIQUE INDEX ledger_transfers_run_id_kind_key ON ledger_transfers (run_id, kind)
    WHERE kind IN ('hold', 'charge', 'release');
CREATE UNIQUE INDEX ledger_transfers_tenant_id_reference_key ON ledger_transfers (tenant_id, reference)
    WHERE reference IS NOT NULL;
CREATE INDEX ledger_transfers_tenant_id_transfer_id_idx ON ledger_transfers (tenant_id, transfer_id);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: post a compensating row instead', TG_TABLE_NAME;
END $$;
CREATE TRIGGER ledger_transfers_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_transfers
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- What the books said up to one transfer. Taken under the tenant's exclusive lock, so that no
-- transfer with a smaller id can still be uncommitted.
CREATE TABLE ledger_snapshots (
    tenant_id             uuid        NOT NULL CONSTRAINT ledger_snapshots_tenant_id_fkey REFERENCES tenants,
    last_transfer_id      bigint      NOT NULL,
    deposited_usd_micros  bigint      NOT NULL,
    available_usd_micros  bigint      NOT NULL,
    held_usd_micros       bigint      NOT NULL,
    charged_usd_micros    bigint      NOT NULL,
    created_at            timestamptz NOT NULL,
    CONSTRAINT ledger_snapshots_pkey PRIMARY KEY (tenant_id, last_transfer_id),
    CONSTRAINT ledger_snapshots_balance_check CHECK (
        deposited_usd_micros = available_usd_micros + held_usd_micros + charged_usd_micros)
);

-- A tenant's books now: the newest snapshot plus the tail.
CREATE FUNCTION tenant_books(tenant uuid)
RETURNS TABLE (last_transfer_id bigint, tail_rows bigint, deposited bigint, available bigint, held bigint, charged bigint)
LANGUAGE sql STABLE AS $$
    WITH snapshot AS (
        SELECT * FROM ledger_snapshots WHERE tenant_id = tenant ORDER BY last_transfer_id DESC LIMIT 1
    ), tail AS (
        SELECT max(transfer_id) AS last_transfer_id, count(*) AS tail_rows,
            coalesce(sum(amount_usd_micros) FILTER (WHERE debit_account = 'funding'), 0)
                - coalesce(sum(amount_usd_micros) FILTER (WHERE credit_account = 'funding'), 0) AS deposited,
            coalesce(sum(amount_usd_micros) FILTER (WHERE credit_account = 'available'), 0)
                - coalesce(sum(amount_usd_micros) FILTER (WHERE debit_account = 'available'), 0) AS available,
            coalesce(sum(amount_usd_micros) FILTER (WHERE credit_account = 'held'), 0)
                - coalesce(sum(amount_usd_micros) FILTER (WHERE debit_account = 'held'), 0) AS held,
            coalesce(sum(amount_usd_micros) FILTER (WHERE credit_account = 'revenue'), 0)
                - coalesce(sum(amount_usd_micros) FILTER (WHERE debit_account = 'revenue'), 0) AS charged
        FROM ledger_transfers
        WHERE tenant_id = tenant
            AND transfer_id > coalesce((SELECT snapshot.last_transfer_id FROM snapshot), 0)
    )
    SELECT coalesce(tail.last_transfer_id, snapshot.last_transfer_id, 0), tail.tail_rows,
        (coalesce(snapshot.deposited_usd_micros, 0) + tail.deposited)::bigint,
        (coalesce(snapshot.available_usd_micros, 0) + tail.available)::bigint,
        (coalesce(snapshot.held_usd_micros, 0) + tail.held)::bigint,
        (coalesce(snapshot.charged_usd_micros, 0) + tail.charged)::bigint
    FROM tail LEFT JOIN snapshot ON true
$$;

-- Rolled up from the ledger, never counted on the way.
CREATE TABLE tenant_usage_daily (
    tenant_id          uuid    NOT NULL CONSTRAINT tenant_usage_daily_tenant_id_fkey REFERENCES tenants,
    usage_date         date    NOT NULL,
    pack_type          text    NOT NULL,
    runs               bigint  NOT NULL,
    charged_usd_micros bigint  NOT NULL,
    CONSTRAINT tenant_usage_daily_pkey PRIMARY KEY (tenant_id, usage_date, pack_type),
    CONSTRAINT tenant_usage_daily_counts_check CHECK (runs >= 0 AND charged_usd_micros >= 0)
);
