-- Where entries of the log are sent. Secrets lie sealed in one value; `config` has none.
CREATE TABLE audit.forwarder (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    name text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('webhook', 'syslog')),
    enabled boolean NOT NULL,
    -- Why it is disabled; empty while it is enabled.
    disabled_reason text NOT NULL DEFAULT '',
    below_too boolean NOT NULL,
    filter jsonb NOT NULL,
    config jsonb NOT NULL,
    sealed_secrets bytea NOT NULL,
    second_secret_until timestamptz,
    -- `now`, `beginning` or a time, as it was asked for.
    start_at text NOT NULL,
    revision bigint NOT NULL,
    created_at timestamptz NOT NULL,
    created_by text NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE INDEX forwarder_by_tenant ON audit.forwarder (tenant_id, id);
CALL evergreen.isolate('audit.forwarder');

-- How a forwarder does, and which process sends for it.
CREATE TABLE audit.forwarder_state (
    forwarder_id uuid PRIMARY KEY REFERENCES audit.forwarder ON DELETE CASCADE,
    tenant_id uuid NOT NULL,
    lease uuid,
    lease_until timestamptz,
    failing_since timestamptz,
    -- Whether the log says that it fails.
    told boolean NOT NULL DEFAULT false,
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz,
    last_error text NOT NULL DEFAULT '',
    last_error_at timestamptz,
    last_success_at timestamptz,
    delivered bigint NOT NULL DEFAULT 0
);
CALL evergreen.isolate('audit.forwarder_state');

-- How far a forwarder is in a chain; it is at its beginning where there is no row. The tenant is that
-- of the forwarder, `chain_id` the one whose chain it is: when that tenant is deleted its log stays.
-- Up to `sequence` the target has all; up to `sent` it was sent, which is more with syslog alone.
CREATE TABLE audit.forwarder_position (
    forwarder_id uuid NOT NULL REFERENCES audit.forwarder ON DELETE CASCADE,
    tenant_id uuid NOT NULL,
    chain_id uuid NOT NULL,
    sequence bigint NOT NULL CHECK (sequence >= 0),
    sent bigint NOT NULL CHECK (sent >= sequence),
    -- Of a message that the target refused, the one behind `sent`.
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz,
    PRIMARY KEY (forwarder_id, chain_id)
);
CREATE INDEX forwarder_position_held ON audit.forwarder_position (forwarder_id, next_attempt_at)
    WHERE next_attempt_at IS NOT NULL;
CALL evergreen.isolate('audit.forwarder_position');

-- Messages that a target refused for good.
CREATE TABLE audit.forwarder_quarantine (
    id uuid PRIMARY KEY,
    forwarder_id uuid NOT NULL REFERENCES audit.forwarder ON DELETE CASCADE,
    tenant_id uuid NOT NULL,
    chain_id uuid NOT NULL,
    sequence bigint NOT NULL,
    entry_id uuid NOT NULL,
    reason text NOT NULL,
    attempts integer NOT NULL,
    quarantined_at timestamptz NOT NULL,
    -- Whether it is to be sent once more.
    retry boolean NOT NULL DEFAULT false,
    delivered_at timestamptz
);
CREATE INDEX forwarder_quarantine_by_forwarder ON audit.forwarder_quarantine (forwarder_id, id);
CALL evergreen.isolate('audit.forwarder_quarantine');

GRANT SELECT, INSERT, UPDATE, DELETE ON
    audit.forwarder, audit.forwarder_state, audit.forwarder_position, audit.forwarder_quarantine
    TO evergreen_audit;
