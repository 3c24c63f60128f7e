-- Which tenant a request to the admin API made, so that the same request again makes no second one.
CREATE TABLE tenant_creations (
    idempotency_key text  NOT NULL CONSTRAINT tenant_creations_pkey PRIMARY KEY,
    payload_sha256  bytea NOT NULL,
    tenant_id       uuid  NOT NULL CONSTRAINT tenant_creations_tenant_id_fkey REFERENCES tenants,
    CONSTRAINT tenant_creations_idempotency_key_check CHECK (length(idempotency_key) BETWEEN 1 AND 255),
    CONSTRAINT tenant_creations_payload_sha256_check CHECK (length(payload_sha256) = 32)
);
