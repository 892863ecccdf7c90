-- Policies of groups and of single devices (docs/adr/0069).
ALTER TABLE policy.policies
    -- JSON: the groups and devices that the policy is for; NULL for all devices of its tenant.
    ADD COLUMN targets text;
ALTER TABLE policy.versions
    -- Likewise. `document` is what the version makes alone then, and no device has its number.
    ADD COLUMN targets text;
ALTER TABLE policy.stamps
    -- Whether any device of the organisation may be given the document again. Not so where it was made for
    -- some of its devices: what a device says that it has proves nothing.
    ADD COLUMN shared boolean NOT NULL DEFAULT true;

-- Which version is in force for a group or a device. Nothing is where `version` is NULL: the row tells of it.
CREATE TABLE policy.bindings (
    tenant_id uuid NOT NULL,
    target_id uuid NOT NULL,
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    -- `group` or `device`.
    kind text NOT NULL CHECK (kind IN ('group', 'device')),
    policy_id uuid,
    version bigint,
    changed_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (tenant_id, target_id),
    CONSTRAINT bindings_version_exists
        FOREIGN KEY (tenant_id, version) REFERENCES policy.versions (tenant_id, version)
);
CREATE INDEX bindings_by_policy ON policy.bindings (tenant_id, policy_id);
CREATE INDEX bindings_feed ON policy.bindings (changed_xid, id);
CALL evergreen.isolate('policy.bindings');

-- Groups, as the registry has them.
CREATE TABLE policy.groups (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    name text NOT NULL,
    alias text NOT NULL,
    -- The greater one counts.
    priority integer NOT NULL,
    deleted boolean NOT NULL,
    changed_xid xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX groups_by_tenant ON policy.groups (tenant_id, id);
CREATE INDEX groups_feed ON policy.groups (changed_xid, id);
CALL evergreen.isolate('policy.groups');

CREATE TABLE policy.groups_cursor (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    cursor text NOT NULL
);
-- A release that knows groups reads the registry's whole feed once more.
ALTER TABLE policy.devices_cursor ADD COLUMN membership_cursor text;

-- Devices that are or were in groups.
CREATE TABLE policy.memberships (
    device_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    -- Sorted.
    group_ids uuid[] NOT NULL,
    -- The registry's; a lower one is older.
    revision bigint NOT NULL,
    changed_xid xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX memberships_by_tenant ON policy.memberships (tenant_id, device_id);
CREATE INDEX memberships_feed ON policy.memberships (changed_xid, device_id);
CALL evergreen.isolate('policy.memberships');

-- What devices with the same policies of groups and of their own are to have.
CREATE TABLE policy.profiles (
    tenant_id uuid NOT NULL,
    -- The groups, and the device, whose policies count; sorted.
    targets uuid[] NOT NULL,
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    -- JSON: of which versions it is made, the root's first. Another one in force means that it is out of date.
    recipe text NOT NULL,
    document_tenant uuid,
    digest bytea,
    -- Why they could not be put together, and devices keep what they had.
    problem text NOT NULL DEFAULT '',
    changed_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (tenant_id, targets),
    CONSTRAINT profiles_document_exists
        FOREIGN KEY (document_tenant, digest) REFERENCES policy.documents (tenant_id, digest)
);
CREATE INDEX profiles_feed ON policy.profiles (changed_xid, id);
CREATE INDEX profiles_by_document ON policy.profiles (document_tenant, digest);
CALL evergreen.isolate('policy.profiles');

-- The last release knows no targets, and would give a group's policy to all devices.
CREATE FUNCTION policy.refuse_targeted() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM policy.policies AS p
            WHERE p.tenant_id = NEW.tenant_id AND p.id = NEW.policy_id AND p.targets IS NOT NULL)
    THEN
        RAISE EXCEPTION 'policy % is for groups or devices', NEW.policy_id;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse_targeted BEFORE INSERT OR UPDATE OF policy_id ON policy.assignments
    FOR EACH ROW WHEN (NEW.policy_id IS NOT NULL) EXECUTE FUNCTION policy.refuse_targeted();

-- Whatever release deletes a policy, it is not in force any more.
CREATE FUNCTION policy.end_bindings() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    UPDATE policy.bindings AS b SET policy_id = NULL, version = NULL, changed_xid = pg_current_xact_id()
        WHERE b.tenant_id = OLD.tenant_id AND b.policy_id = OLD.id;
    RETURN NULL;
END $$;
CREATE TRIGGER end_bindings AFTER DELETE ON policy.policies
    FOR EACH ROW EXECUTE FUNCTION policy.end_bindings();

GRANT SELECT, INSERT, UPDATE ON policy.bindings, policy.profiles TO evergreen_policy;
GRANT SELECT, INSERT, UPDATE, DELETE ON policy.memberships TO evergreen_policy;
GRANT SELECT, INSERT, UPDATE ON policy.groups, policy.groups_cursor TO evergreen_policy;
