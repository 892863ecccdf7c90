CREATE TABLE enrollment.token (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    name text NOT NULL,
    -- SHA-256 of the secret. A secret has 256 random bits: there is nothing to guess that a slow
    -- hash would protect, and a plain one can be looked up.
    secret_hash bytea NOT NULL CONSTRAINT token_secret UNIQUE CHECK (length(secret_hash) = 32),
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    -- 0 for any number.
    max_uses integer NOT NULL CHECK (max_uses >= 0),
    uses integer NOT NULL DEFAULT 0,
    serial_count integer NOT NULL CHECK (serial_count >= 0),
    require_approval boolean NOT NULL,
    last_used_at timestamptz,
    revoked_at timestamptz,
    CHECK (uses >= 0 AND (max_uses = 0 OR uses <= max_uses))
);
CREATE INDEX token_by_tenant ON enrollment.token (tenant_id, id);
CALL evergreen.isolate('enrollment.token');

-- The serial numbers that a token is limited to.
CREATE TABLE enrollment.token_serial (
    token_id uuid NOT NULL REFERENCES enrollment.token (id),
    serial text NOT NULL,
    tenant_id uuid NOT NULL,
    PRIMARY KEY (token_id, serial)
);
CALL evergreen.isolate('enrollment.token_serial');

CREATE TABLE enrollment.device (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    serial text NOT NULL,
    model text NOT NULL,
    cpu_model text NOT NULL,
    cpu_count integer NOT NULL,
    -- uint64
    total_ram_bytes numeric(20, 0) NOT NULL,
    has_tpm boolean NOT NULL,
    status text NOT NULL
        CHECK (status IN ('pending', 'prepared', 'active', 'rejected', 'decommissioned')),
    -- Tokens of lower versions are refused; it only grows.
    token_version integer NOT NULL CHECK (token_version >= 1),
    enrollment_token_id uuid REFERENCES enrollment.token (id),
    -- SHA-256 of the request that enrolled the device: its retry is known by it.
    fingerprint bytea CHECK (length(fingerprint) = 32),
    created_at timestamptz NOT NULL,
    enrolled_at timestamptz,
    decommissioned_at timestamptz,
    reenrollment_allowed_until timestamptz,
    reenrollment_refused_at timestamptz,
    -- When a refusal was last told in an event: a looping agent must not fill the audit log.
    refusal_told_at timestamptz,
    changed_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    CONSTRAINT device_serial UNIQUE (tenant_id, serial)
);
CREATE INDEX device_by_tenant ON enrollment.device (tenant_id, id);
CREATE INDEX device_changes ON enrollment.device (changed_xid, id);
CREATE INDEX device_restrictions ON enrollment.device (changed_xid, id)
    WHERE status IN ('decommissioned', 'rejected') OR token_version > 1;
CREATE INDEX device_prepared ON enrollment.device (id) WHERE status = 'prepared';
CALL evergreen.isolate('enrollment.device');

-- The feed tells of a change whichever statement makes it. What the feed does not carry (refused
-- attempts, above all) does not wake its readers.
CREATE FUNCTION enrollment.device_changed() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.tenant_id, NEW.serial, NEW.model, NEW.status, NEW.token_version, NEW.enrolled_at)
        IS DISTINCT FROM
        (OLD.tenant_id, OLD.serial, OLD.model, OLD.status, OLD.token_version, OLD.enrolled_at)
    THEN
        NEW.changed_xid := pg_current_xact_id();
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER device_changed BEFORE UPDATE ON enrollment.device
    FOR EACH ROW EXECUTE FUNCTION enrollment.device_changed();

-- That the first start's token was made: it is never made again, revoked or not.
CREATE TABLE enrollment.first_start (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    token_id uuid NOT NULL REFERENCES enrollment.token (id)
);

-- How far policy's feed was read.
CREATE TABLE enrollment.applied_cursor (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    cursor text NOT NULL
);

CALL evergreen.add_outbox('enrollment');

GRANT SELECT, INSERT, UPDATE ON enrollment.token, enrollment.device, enrollment.applied_cursor
    TO evergreen_enrollment;
GRANT SELECT, INSERT ON enrollment.token_serial, enrollment.first_start TO evergreen_enrollment;
