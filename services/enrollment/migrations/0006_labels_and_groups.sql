-- Labels of devices, and the groups that they are in (docs/adr/0062).
ALTER TABLE enrollment.device
    ADD COLUMN labels jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN asset_tag text NOT NULL DEFAULT '',
    ADD COLUMN note text NOT NULL DEFAULT '',
    -- Sorted.
    ADD COLUMN group_ids uuid[] NOT NULL DEFAULT '{}',
    -- Only grows: with each change of labels or groups.
    ADD COLUMN membership_revision bigint NOT NULL DEFAULT 1,
    -- NULL when what groups go by has changed since: a service computes them. Devices of before are in no
    -- group; those that the last release's services add or change are found by this.
    ADD COLUMN groups_computed_at timestamptz DEFAULT now();
-- The last release's services do not name it, and shall leave it NULL.
-- squawk-ignore ban-drop-default
ALTER TABLE enrollment.device ALTER COLUMN groups_computed_at DROP DEFAULT;

-- As before; that labels or groups changed is told, too.
CREATE OR REPLACE FUNCTION enrollment.device_changed() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.groups_computed_at IS NOT DISTINCT FROM OLD.groups_computed_at
        AND (NEW.tenant_id, NEW.serial, NEW.model, NEW.cpu_model, NEW.cpu_count, NEW.total_ram_bytes,
                NEW.has_tpm, NEW.status, NEW.enrollment_token_id, NEW.enrolled_at, NEW.labels,
                NEW.deleted_at)
            IS DISTINCT FROM
            (OLD.tenant_id, OLD.serial, OLD.model, OLD.cpu_model, OLD.cpu_count, OLD.total_ram_bytes,
                OLD.has_tpm, OLD.status, OLD.enrollment_token_id, OLD.enrolled_at, OLD.labels,
                OLD.deleted_at)
    THEN
        NEW.groups_computed_at := NULL;
    END IF;
    IF (NEW.labels, NEW.group_ids, NEW.groups_computed_at IS NULL)
        IS DISTINCT FROM (OLD.labels, OLD.group_ids, OLD.groups_computed_at IS NULL)
    THEN
        NEW.membership_revision := NEW.membership_revision + 1;
    END IF;
    IF (NEW.tenant_id, NEW.serial, NEW.model, NEW.status, NEW.token_version, NEW.enrolled_at,
            NEW.deleted_at, NEW.membership_revision)
        IS DISTINCT FROM
        (OLD.tenant_id, OLD.serial, OLD.model, OLD.status, OLD.token_version, OLD.enrolled_at,
            OLD.deleted_at, OLD.membership_revision)
    THEN
        NEW.changed_xid := pg_current_xact_id();
    END IF;
    RETURN NEW;
END $$;

-- Groups of an organisation's devices. The row of a deleted one stays: it is its tombstone.
CREATE TABLE enrollment.device_group (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    name text NOT NULL,
    alias text NOT NULL,
    description text NOT NULL,
    priority integer NOT NULL CHECK (priority > 0),
    -- NULL for a group with listed members.
    filter text,
    filter_terms integer NOT NULL CHECK (filter_terms >= 0),
    revision bigint NOT NULL DEFAULT 1,
    -- While devices are still to be computed: behind which one.
    computing_after uuid,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    deleted_at timestamptz,
    deleted_by text,
    changed_xid xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE UNIQUE INDEX device_group_alias ON enrollment.device_group (tenant_id, alias)
    WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX device_group_priority ON enrollment.device_group (tenant_id, priority)
    WHERE deleted_at IS NULL;
CREATE INDEX device_group_by_tenant ON enrollment.device_group (tenant_id, id);
CREATE INDEX device_group_changes ON enrollment.device_group (changed_xid, id);
CREATE INDEX device_group_computing ON enrollment.device_group (id) WHERE computing_after IS NOT NULL;
CALL evergreen.isolate('enrollment.device_group');

CREATE FUNCTION enrollment.device_group_changed() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.name, NEW.alias, NEW.priority, NEW.filter, NEW.deleted_at, NEW.revision)
        IS DISTINCT FROM (OLD.name, OLD.alias, OLD.priority, OLD.filter, OLD.deleted_at, OLD.revision)
    THEN
        NEW.changed_xid := pg_current_xact_id();
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER device_group_changed BEFORE UPDATE ON enrollment.device_group
    FOR EACH ROW EXECUTE FUNCTION enrollment.device_group_changed();

-- Listed members, by serial number: before they enroll, and after they enroll again.
CREATE TABLE enrollment.group_member (
    group_id uuid NOT NULL,
    serial_key text COLLATE "C" NOT NULL,
    serial text NOT NULL,
    tenant_id uuid NOT NULL,
    added_by text NOT NULL,
    added_at timestamptz NOT NULL,
    PRIMARY KEY (group_id, serial_key)
);
CREATE INDEX group_member_by_serial ON enrollment.group_member (tenant_id, serial_key);
CALL evergreen.isolate('enrollment.group_member');

GRANT SELECT, INSERT, UPDATE ON enrollment.device_group TO evergreen_enrollment;
GRANT SELECT, INSERT, DELETE ON enrollment.group_member TO evergreen_enrollment;
