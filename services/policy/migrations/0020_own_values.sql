-- Values of their own that tenants have in templates of tenants above (docs/adr/0089).
ALTER TABLE policy.variable
    -- Whether tenants below may have a value of their own in place of this one.
    ADD COLUMN overridable boolean NOT NULL DEFAULT false;
ALTER TABLE policy.versions
    -- What of a template tenants below may have values of their own for: `var.NAME`, `secret.NAME`,
    -- `org.code`, `org.name`.
    -- squawk-ignore adding-field-with-default
    ADD COLUMN leaves text[] NOT NULL DEFAULT '{}';
-- Which values of tenants below something was made with: their revisions' digest; empty for none.
ALTER TABLE policy.editions ADD COLUMN filled text NOT NULL DEFAULT '';
ALTER TABLE policy.profiles ADD COLUMN filled text NOT NULL DEFAULT '';

-- The tenants that have, or had, variables or secrets: templates above may take them.
CREATE TABLE policy.own_values (
    tenant_id uuid PRIMARY KEY,
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    -- Changes with each change of a value.
    revision bigint NOT NULL,
    changed_xid xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX own_values_feed ON policy.own_values (changed_xid, id);
CALL evergreen.isolate('policy.own_values');
GRANT SELECT, INSERT, UPDATE ON policy.own_values TO evergreen_policy;
INSERT INTO policy.own_values (tenant_id, revision) SELECT DISTINCT tenant_id, 1 FROM policy.variable;
