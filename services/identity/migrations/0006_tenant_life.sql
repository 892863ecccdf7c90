-- Tenants are archived, restored and deleted, and their old codes live on until they are dropped.
SELECT set_config('evergreen.scope', '*', true);

ALTER TABLE identity.tenant
    ADD COLUMN archived_at timestamptz,
    ADD COLUMN archived_by text,
    -- The tenant that was archived, with this one below it; what a restore of that one restores.
    ADD COLUMN archived_with uuid,
    ADD COLUMN purge_at timestamptz,
    ADD COLUMN deletion_requested_at timestamptz,
    ADD COLUMN deletion_requested_by text;

-- Codes that tenants had before and that still work. A trigger keeps them, also for the release before.
CREATE TABLE identity.old_tenant_code (
    code text CONSTRAINT old_tenant_code_once PRIMARY KEY,
    tenant_id uuid NOT NULL REFERENCES identity.tenant (id) ON DELETE CASCADE,
    since timestamptz NOT NULL,
    replaced_at timestamptz NOT NULL
);
CREATE INDEX old_tenant_code_by_tenant ON identity.old_tenant_code (tenant_id);
CALL evergreen.isolate('identity.old_tenant_code');
GRANT SELECT, INSERT, UPDATE, DELETE ON identity.old_tenant_code TO evergreen_identity;

-- Codes of all tenants are looked at: a code is unique in the whole system.
CREATE FUNCTION identity.keep_tenant_code() RETURNS trigger
    LANGUAGE plpgsql AS $$
DECLARE
    scope text := coalesce(current_setting('evergreen.scope', true), '');
BEGIN
    PERFORM set_config('evergreen.scope', '*', true);
    DELETE FROM identity.old_tenant_code WHERE code = NEW.code AND tenant_id = NEW.id;
    -- A transaction that gives up this code has ended by now: the code is unique among today's.
    PERFORM FROM identity.old_tenant_code WHERE code = NEW.code;
    IF FOUND THEN
        RAISE EXCEPTION 'the code % is taken', NEW.code
            USING ERRCODE = 'unique_violation', CONSTRAINT = 'tenant_code_taken';
    END IF;
    IF TG_OP = 'UPDATE' THEN
        INSERT INTO identity.old_tenant_code (code, tenant_id, since, replaced_at)
            VALUES (OLD.code, NEW.id, coalesce(
                (SELECT max(replaced_at) FROM identity.old_tenant_code WHERE tenant_id = NEW.id),
                OLD.created_at), NEW.updated_at);
    END IF;
    PERFORM set_config('evergreen.scope', scope, true);
    RETURN NULL;
END $$;
CREATE TRIGGER keep_code AFTER INSERT ON identity.tenant
    FOR EACH ROW EXECUTE FUNCTION identity.keep_tenant_code();
CREATE TRIGGER keep_changed_code AFTER UPDATE OF code ON identity.tenant
    FOR EACH ROW WHEN (OLD.code IS DISTINCT FROM NEW.code)
    EXECUTE FUNCTION identity.keep_tenant_code();

-- What stays of a tenant that was deleted, so that the audit log can be read.
CREATE TABLE identity.tenant_tombstone (
    id uuid PRIMARY KEY,
    parent_id uuid NOT NULL,
    kind text NOT NULL,
    name text NOT NULL,
    code text NOT NULL,
    created_at timestamptz NOT NULL,
    archived_at timestamptz NOT NULL,
    archived_by text NOT NULL,
    deletion_requested_at timestamptz NOT NULL,
    deleted_at timestamptz NOT NULL,
    deleted_by text NOT NULL,
    -- Rows that each service deleted.
    erased_rows json NOT NULL,
    changed_xid xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX tenant_tombstone_changes ON identity.tenant_tombstone (changed_xid, id);
CALL evergreen.isolate('identity.tenant_tombstone', 'id');

-- The same of a user.
CREATE TABLE identity.user_tombstone (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    email text NOT NULL,
    deleted_at timestamptz NOT NULL,
    deleted_by text NOT NULL
);
CREATE INDEX user_tombstone_by_tenant ON identity.user_tombstone (tenant_id, id);
CALL evergreen.isolate('identity.user_tombstone');

-- How far each service is with a tenant that is being deleted.
CREATE TABLE identity.tenant_erasure (
    tenant_id uuid NOT NULL REFERENCES identity.tenant (id) ON DELETE CASCADE,
    context text NOT NULL,
    erased_rows bigint NOT NULL,
    waiting_for text NOT NULL,
    finished_at timestamptz,
    PRIMARY KEY (tenant_id, context)
);
CALL evergreen.isolate('identity.tenant_erasure');

GRANT SELECT, INSERT ON identity.tenant_tombstone, identity.user_tombstone TO evergreen_identity;
GRANT SELECT, INSERT, UPDATE, DELETE ON identity.tenant_erasure TO evergreen_identity;
GRANT DELETE ON identity.tenant TO evergreen_identity;

-- How far time has come for purges of archived tenants: as telemetry.retention_cursor, so that a clock
-- that is years ahead at a start deletes nothing.
CREATE TABLE identity.purge_cursor (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    reached timestamptz NOT NULL
);
INSERT INTO identity.purge_cursor (reached) VALUES (now());
GRANT SELECT, UPDATE ON identity.purge_cursor TO evergreen_identity;
