-- The key for policies that devices pin, and that enrollment tokens give them (docs/adr/0080). NULL for the
-- first key of the installation, which those of the release before pin.
ALTER TABLE enrollment.token ADD COLUMN policy_key_id text;
ALTER TABLE enrollment.device ADD COLUMN policy_key_id text;

-- As before; another key is told with labels and groups.
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
    IF (NEW.labels, NEW.group_ids, NEW.policy_key_id, NEW.groups_computed_at IS NULL)
        IS DISTINCT FROM (OLD.labels, OLD.group_ids, OLD.policy_key_id, OLD.groups_computed_at IS NULL)
    THEN
        NEW.membership_revision := NEW.membership_revision + 1;
    END IF;
    IF (NEW.tenant_id, NEW.serial, NEW.model, NEW.status, NEW.archived_status, NEW.token_version,
            NEW.enrolled_at, NEW.deleted_at, NEW.membership_revision)
        IS DISTINCT FROM
        (OLD.tenant_id, OLD.serial, OLD.model, OLD.status, OLD.archived_status, OLD.token_version,
            OLD.enrolled_at, OLD.deleted_at, OLD.membership_revision)
    THEN
        NEW.changed_xid := pg_current_xact_id();
    END IF;
    RETURN NEW;
END $$;
