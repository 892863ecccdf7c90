-- Mails that wait until identity has them (docs/adr/0075). Those that ended stay for a day, to be counted.
CREATE TABLE audit.notice (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    texts jsonb NOT NULL,
    addresses text[] NOT NULL,
    roles text[] NOT NULL,
    created_at timestamptz NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    -- NULL when it has ended.
    next_attempt_at timestamptz
);
CREATE INDEX notice_due ON audit.notice (next_attempt_at) WHERE next_attempt_at IS NOT NULL;
CREATE INDEX notice_by_tenant ON audit.notice (tenant_id, created_at);
CALL evergreen.isolate('audit.notice');

-- What is or was the matter. `subject` is what it is about, empty for the tenant as a whole.
CREATE TABLE audit.alert (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    kind text NOT NULL,
    subject text NOT NULL,
    facts jsonb NOT NULL,
    raised_at timestamptz NOT NULL,
    -- How often people were told that it lasts.
    step integer NOT NULL DEFAULT 0,
    -- Since when its condition does not hold; it is resolved when that lasts.
    ended_since timestamptz,
    resolved_at timestamptz
);
CREATE UNIQUE INDEX alert_open ON audit.alert (tenant_id, kind, subject) WHERE resolved_at IS NULL;
CREATE INDEX alert_by_tenant ON audit.alert (tenant_id, raised_at, id);
CREATE INDEX alert_resolved ON audit.alert (resolved_at) WHERE resolved_at IS NOT NULL;
CALL evergreen.isolate('audit.alert');

-- What a tenant has said of alerts, for itself and all below it that have said nothing.
CREATE TABLE audit.alert_rules (
    tenant_id uuid PRIMARY KEY,
    rules jsonb NOT NULL,
    emails text[] NOT NULL,
    roles text[] NOT NULL,
    revision bigint NOT NULL,
    updated_at timestamptz NOT NULL,
    updated_by text NOT NULL
);
CALL evergreen.isolate('audit.alert_rules');

-- When a tenant was last told of all that is open.
CREATE TABLE audit.alert_digest (
    tenant_id uuid PRIMARY KEY,
    told_at timestamptz NOT NULL
);
CALL evergreen.isolate('audit.alert_digest');

-- Up to which entry of a chain alerts know it. It stays with the chain when the tenant is deleted.
CREATE TABLE audit.alert_position (
    chain_id uuid PRIMARY KEY,
    sequence bigint NOT NULL CHECK (sequence >= 0)
);

-- Which process looks.
CREATE TABLE audit.alert_lead (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    lease uuid NOT NULL,
    lease_until timestamptz NOT NULL
);

-- What was recorded before raises nothing.
SELECT set_config('evergreen.scope', '*', true);
INSERT INTO audit.alert_position (chain_id, sequence)
    SELECT tenant_id, sequence FROM audit.chain_head;

-- Whom a schedule tells that its report is ready, or could not be made.
ALTER TABLE audit.report_schedule ADD COLUMN notify text[] NOT NULL DEFAULT '{}';

GRANT SELECT, INSERT, UPDATE, DELETE ON
    audit.notice, audit.alert, audit.alert_rules, audit.alert_digest, audit.alert_lead
    TO evergreen_audit;
GRANT SELECT, INSERT, UPDATE ON audit.alert_position TO evergreen_audit;
