-- Policies as people write them.
CREATE TABLE policies (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    name text NOT NULL,
    description text,
    -- JSON as it was authored, in either form.
    authored text NOT NULL,
    -- Counts changes; it is the etag.
    revision bigint NOT NULL DEFAULT 1,
    -- What was last published, and whether the authored form is still that.
    published_version bigint,
    changed_since_publish boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE INDEX policies_by_tenant ON policies (tenant_id, id);
CALL evergreen.isolate('policy.policies');

-- Every published version, for ever: a version outlives its policy.
CREATE TABLE versions (
    tenant_id uuid NOT NULL,
    version bigint NOT NULL CHECK (version BETWEEN 1 AND 999999999999999999),
    policy_id uuid NOT NULL,
    authored text NOT NULL,
    -- The exact bytes that are signed and delivered.
    document bytea NOT NULL,
    signature bytea NOT NULL,
    statement_payload bytea NOT NULL,
    statement_signature bytea NOT NULL,
    key_id text NOT NULL,
    rollback_of bigint,
    published_at timestamptz NOT NULL,
    published_by text NOT NULL,
    PRIMARY KEY (tenant_id, version)
);
CREATE INDEX versions_by_policy ON versions (policy_id, version DESC);
CALL evergreen.isolate('policy.versions');

-- The last version of each organisation; its row lock orders the publishes of one organisation.
CREATE TABLE version_counters (
    tenant_id uuid PRIMARY KEY,
    last_version bigint NOT NULL
);
CALL evergreen.isolate('policy.version_counters');

-- What is in force for whom. Today the only target is the whole organisation. A row stays when
-- its policy is deleted (then without a version), so that every process hears of it.
CREATE TABLE assignments (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    target text NOT NULL DEFAULT 'org' CHECK (target = 'org'),
    policy_id uuid,
    version bigint,
    changed_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    CONSTRAINT assignments_one_per_target UNIQUE (tenant_id, target),
    CONSTRAINT assignments_version_exists
        FOREIGN KEY (tenant_id, version) REFERENCES versions (tenant_id, version),
    CHECK ((policy_id IS NULL) = (version IS NULL))
);
CREATE INDEX assignments_feed ON assignments (changed_xid, id);
CALL evergreen.isolate('policy.assignments');

-- The keys that sign policies; private ones are sealed with the master key.
CREATE TABLE signing_keys (
    id text PRIMARY KEY,
    public_key bytea NOT NULL CHECK (length(public_key) = 32),
    sealed_seed bytea NOT NULL,
    signs boolean NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE UNIQUE INDEX signing_keys_one_signs ON signing_keys (signs) WHERE signs;

-- The version that each device says it has applied (0 for none), and the generation of the token
-- that it said so with.
CREATE TABLE applied_versions (
    device_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    version bigint NOT NULL,
    token_version integer NOT NULL,
    reported_at timestamptz NOT NULL,
    changed_xid xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX applied_versions_feed ON applied_versions (changed_xid, device_id);
CREATE INDEX applied_versions_highest ON applied_versions (tenant_id, version DESC);
CALL evergreen.isolate('policy.applied_versions');

-- Devices that an administrator wants to apply their policy again.
CREATE TABLE device_syncs (
    device_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    requested_at timestamptz NOT NULL,
    served_at timestamptz,
    changed_xid xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX device_syncs_feed ON device_syncs (changed_xid, device_id);
CALL evergreen.isolate('policy.device_syncs');

-- Which device belongs to which organisation, as the registry says.
CREATE TABLE devices (
    device_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    status text NOT NULL
);
CALL evergreen.isolate('policy.devices');
CREATE TABLE devices_cursor (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    cursor text NOT NULL
);

CALL evergreen.add_outbox('policy');
CALL evergreen.add_device_access('policy');

GRANT SELECT, INSERT, UPDATE, DELETE ON policies TO evergreen_policy;
GRANT SELECT, INSERT ON versions TO evergreen_policy;
GRANT SELECT, INSERT, UPDATE ON version_counters, assignments, signing_keys, applied_versions,
    device_syncs, devices, devices_cursor TO evergreen_policy;
