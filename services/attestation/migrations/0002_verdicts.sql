-- Devices as the registry has them, each with the latest verdict over its boot.
CREATE TABLE attestation.device (
    device_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    -- As the registry says; a device that attests before the registry was heard of it is active.
    status text NOT NULL,
    serial text NOT NULL DEFAULT '',
    model text NOT NULL DEFAULT '',
    verdict text NOT NULL DEFAULT 'NONE',
    reasons text[] NOT NULL DEFAULT '{}',
    bank text NOT NULL DEFAULT '',
    -- Register → value in hexadecimal; NULL when the evidence failed.
    pcrs jsonb,
    attested_at timestamptz,
    -- The TPM that the device is bound to.
    binding_id uuid,
    -- The verdict that the last event told of, and how many the device had on that day.
    told_verdict text NOT NULL DEFAULT 'NONE',
    told_on date,
    told_times integer NOT NULL DEFAULT 0,
    changed_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    CONSTRAINT device_verdict_known
        CHECK (verdict IN ('NONE', 'FAILED', 'SELF_CONSISTENT', 'KNOWN_TPM', 'VERIFIED')),
    CONSTRAINT device_verdict_of_evidence CHECK ((verdict = 'NONE') = (attested_at IS NULL)),
    -- What nothing binds to a TPM is never more than consistent.
    CONSTRAINT device_verdict_bound
        CHECK (verdict NOT IN ('KNOWN_TPM', 'VERIFIED') OR binding_id IS NOT NULL)
);
CREATE INDEX device_by_tenant ON attestation.device (tenant_id, device_id);
CREATE INDEX device_by_verdict ON attestation.device (tenant_id, verdict, device_id);
CREATE INDEX device_feed ON attestation.device (changed_xid, device_id) WHERE attested_at IS NOT NULL;
CALL evergreen.isolate('attestation.device');
CREATE TABLE attestation.device_cursor (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    cursor text NOT NULL
);

-- The latest verdicts of each device.
CREATE TABLE attestation.boot_verdict (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    device_id uuid NOT NULL,
    verdict text NOT NULL,
    reasons text[] NOT NULL,
    bank text NOT NULL,
    pcrs jsonb,
    evidence_sha256 bytea NOT NULL,
    attested_at timestamptz NOT NULL,
    binding_id uuid,
    CONSTRAINT boot_verdict_known
        CHECK (verdict IN ('FAILED', 'SELF_CONSISTENT', 'KNOWN_TPM', 'VERIFIED')),
    CONSTRAINT boot_verdict_bound
        CHECK (verdict NOT IN ('KNOWN_TPM', 'VERIFIED') OR binding_id IS NOT NULL)
);
CREATE INDEX boot_verdict_by_device ON attestation.boot_verdict (device_id, id DESC);
CREATE INDEX boot_verdict_by_evidence ON attestation.boot_verdict (device_id, evidence_sha256, id DESC);
CREATE INDEX boot_verdict_by_tenant ON attestation.boot_verdict (tenant_id);
CALL evergreen.isolate('attestation.boot_verdict');

-- What good evidence was made of, so that it is of no use twice: unique in the whole installation.
CREATE TABLE attestation.seen_nonce (
    nonce_sha256 bytea PRIMARY KEY,
    evidence_sha256 bytea NOT NULL,
    tenant_id uuid NOT NULL,
    device_id uuid NOT NULL,
    seen_at timestamptz NOT NULL
);
CREATE INDEX seen_nonce_by_device ON attestation.seen_nonce (device_id, seen_at DESC);
CREATE INDEX seen_nonce_by_tenant ON attestation.seen_nonce (tenant_id);
CREATE INDEX seen_nonce_by_time ON attestation.seen_nonce (seen_at);
CALL evergreen.isolate('attestation.seen_nonce');
CREATE TABLE attestation.seen_key (
    ak_name bytea PRIMARY KEY,
    tenant_id uuid NOT NULL,
    device_id uuid NOT NULL,
    seen_at timestamptz NOT NULL
);
CREATE INDEX seen_key_by_device ON attestation.seen_key (device_id, seen_at DESC);
CREATE INDEX seen_key_by_tenant ON attestation.seen_key (tenant_id);
CREATE INDEX seen_key_by_time ON attestation.seen_key (seen_at);
CALL evergreen.isolate('attestation.seen_key');

GRANT SELECT, INSERT, UPDATE, DELETE ON attestation.device, attestation.seen_key TO evergreen_attestation;
GRANT SELECT, INSERT, UPDATE ON attestation.device_cursor TO evergreen_attestation;
GRANT SELECT, INSERT, DELETE ON attestation.boot_verdict, attestation.seen_nonce TO evergreen_attestation;
