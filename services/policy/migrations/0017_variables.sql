-- Variables and secrets that templates of policies name (docs/adr/0082). A template keeps the values of its
-- last publish in its version.
CREATE TABLE policy.variable (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    name text NOT NULL,
    is_secret boolean NOT NULL,
    -- NULL for a secret, whose value is sealed.
    value text,
    sealed_secrets bytea,
    -- Tells the values of a secret from each other; empty for a variable.
    fingerprint text NOT NULL,
    revision bigint NOT NULL,
    updated_at timestamptz NOT NULL,
    updated_by text NOT NULL,
    -- The set that it belongs to, and its revision when that was applied; empty for none.
    set_name text NOT NULL DEFAULT '',
    set_revision bigint NOT NULL DEFAULT 0,
    CONSTRAINT variable_name UNIQUE (tenant_id, name),
    CONSTRAINT variable_value CHECK ((value IS NULL) = is_secret AND (sealed_secrets IS NOT NULL) = is_secret)
);
CALL evergreen.isolate('policy.variable');
GRANT SELECT, INSERT, UPDATE, DELETE ON policy.variable TO evergreen_policy;

ALTER TABLE policy.policies
    -- What the authored form names: `var.NAME`, `secret.NAME`. The release before knows no templates.
    ADD COLUMN uses text[] NOT NULL DEFAULT '{}';
