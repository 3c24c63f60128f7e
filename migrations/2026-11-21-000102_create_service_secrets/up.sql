-- What all replicas must share and nobody must set: made here, once, and read by whoever needs it.
CREATE TABLE service_secrets (
    name       text        NOT NULL CONSTRAINT service_secrets_pkey PRIMARY KEY,
    secret     bytea       NOT NULL,
    created_at timestamptz NOT NULL,
    CONSTRAINT service_secrets_secret_check CHECK (length(secret) = 32)
);

-- Signs the cursors of lists. Two random UUIDs hold 244 bits from the server's strong source.
INSERT INTO service_secrets
VALUES ('cursors', sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())), statement_timestamp());
