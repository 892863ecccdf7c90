-- The TPM that a device is bound to. A TPM is one device's in the whole installation.
CREATE TABLE attestation.tpm_binding (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    device_id uuid NOT NULL,
    -- Of the endorsement key's SubjectPublicKeyInfo.
    ek_sha256 bytea NOT NULL,
    ek_certificate bytea,
    -- The root that the certificate led to; NULL for a key that an organisation listed.
    root_sha256 bytea,
    ak_name bytea NOT NULL,
    ak_public bytea NOT NULL,
    bound_at timestamptz NOT NULL,
    CONSTRAINT tpm_binding_one_of_a_device UNIQUE (device_id),
    CONSTRAINT tpm_binding_one_device UNIQUE (ek_sha256),
    CONSTRAINT tpm_binding_one_key UNIQUE (ak_name)
);
CREATE INDEX tpm_binding_by_tenant ON attestation.tpm_binding (tenant_id);
CALL evergreen.isolate('attestation.tpm_binding');
-- No device is bound yet, so that there is nothing to validate.
ALTER TABLE attestation.device ADD CONSTRAINT device_binding_exists
    FOREIGN KEY (binding_id) REFERENCES attestation.tpm_binding (id) NOT VALID;

-- A secret that a device's TPM has to give away; one of a device at a time.
CREATE TABLE attestation.tpm_enrollment (
    device_id uuid PRIMARY KEY,
    id uuid NOT NULL UNIQUE,
    tenant_id uuid NOT NULL,
    ek_sha256 bytea NOT NULL,
    ek_certificate bytea,
    root_sha256 bytea,
    ak_name bytea NOT NULL,
    ak_public bytea NOT NULL,
    proof_sha256 bytea NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX tpm_enrollment_by_tenant ON attestation.tpm_enrollment (tenant_id);
CALL evergreen.isolate('attestation.tpm_enrollment');

-- The nonce for a device's next evidence.
CREATE TABLE attestation.challenge (
    device_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    nonce_sha256 bytea NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX challenge_by_tenant ON attestation.challenge (tenant_id);
CALL evergreen.isolate('attestation.challenge');

-- Certificates by which TPMs are known, in the whole installation.
CREATE TABLE attestation.trust_root (
    id uuid PRIMARY KEY,
    sha256 bytea NOT NULL,
    certificate bytea NOT NULL,
    subject text NOT NULL,
    not_before timestamptz NOT NULL,
    not_after timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    CONSTRAINT trust_root_once UNIQUE (sha256)
);

-- Endorsement keys that an organisation lists with its devices' serial numbers.
CREATE TABLE attestation.listed_key (
    tenant_id uuid NOT NULL,
    serial_key text NOT NULL,
    ek_sha256 bytea NOT NULL,
    PRIMARY KEY (tenant_id, serial_key, ek_sha256)
);
CALL evergreen.isolate('attestation.listed_key');

GRANT SELECT, INSERT, UPDATE, DELETE ON attestation.tpm_binding, attestation.tpm_enrollment,
    attestation.challenge TO evergreen_attestation;
GRANT SELECT, INSERT, DELETE ON attestation.trust_root, attestation.listed_key TO evergreen_attestation;
