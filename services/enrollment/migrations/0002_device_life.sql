-- Devices of an archived organisation come back with it, and what stays of a deleted device is its row,
-- which keeps its serial number out.
ALTER TABLE enrollment.device
    -- What an archive of the organisation found, and its restore brings back.
    ADD COLUMN archived_status text
        CHECK (archived_status IN ('pending', 'prepared', 'active', 'rejected')),
    -- When such a restore last brought it back: its token works again, which is told like that a token
    -- does not work any more.
    ADD COLUMN restored_at timestamptz,
    ADD COLUMN deleted_at timestamptz,
    ADD COLUMN deleted_by text;

-- As before; that a device was deleted is told, too.
CREATE OR REPLACE FUNCTION enrollment.device_changed() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.tenant_id, NEW.serial, NEW.model, NEW.status, NEW.token_version, NEW.enrolled_at,
            NEW.deleted_at)
        IS DISTINCT FROM
        (OLD.tenant_id, OLD.serial, OLD.model, OLD.status, OLD.token_version, OLD.enrolled_at,
            OLD.deleted_at)
    THEN
        NEW.changed_xid := pg_current_xact_id();
    END IF;
    RETURN NEW;
END $$;

-- Tokens go with their organisation only, and all that refers to them with it. To look for what refers
-- to each one would read all devices.
-- squawk-ignore ban-drop-constraint
ALTER TABLE enrollment.device DROP CONSTRAINT device_enrollment_token_id_fkey;
-- squawk-ignore ban-drop-constraint
ALTER TABLE enrollment.token_serial DROP CONSTRAINT token_serial_token_id_fkey;
-- squawk-ignore ban-drop-constraint
ALTER TABLE enrollment.first_start DROP CONSTRAINT first_start_token_id_fkey;
