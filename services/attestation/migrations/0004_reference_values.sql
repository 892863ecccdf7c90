-- What an organisation's devices may boot: values of registers of the SHA-256 bank.
CREATE TABLE attestation.reference_value (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    name text NOT NULL,
    kind text NOT NULL,
    -- Only for devices of this model; empty for all.
    model text NOT NULL,
    -- Register → the values that it may have, in hexadecimal.
    pcrs jsonb NOT NULL,
    state text NOT NULL,
    source text NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT reference_value_kind_known CHECK (kind IN ('FIRMWARE', 'OS_IMAGE')),
    CONSTRAINT reference_value_state_known CHECK (state IN ('STAGED', 'ACTIVE', 'RETIRED')),
    CONSTRAINT reference_value_source_known CHECK (source IN ('LEARNED', 'UPLOADED', 'UKI'))
);
CREATE INDEX reference_value_by_tenant ON attestation.reference_value (tenant_id, id);
CALL evergreen.isolate('attestation.reference_value');
GRANT SELECT, INSERT, UPDATE, DELETE ON attestation.reference_value TO evergreen_attestation;

-- Whether the event log of the latest evidence shows secure boot; NULL without a log.
ALTER TABLE attestation.device
    ADD COLUMN secure_boot boolean,
    ADD COLUMN reference_value_ids uuid[] NOT NULL DEFAULT '{}';
ALTER TABLE attestation.boot_verdict
    ADD COLUMN secure_boot boolean,
    ADD COLUMN reference_value_ids uuid[] NOT NULL DEFAULT '{}';
