-- What names a device: its serial number, compared by a key beside the form in which it is shown; or,
-- for a machine that has none of its own, an approval (docs/adr/0044).
ALTER TABLE enrollment.device
    -- Of a second spelling that was registered before: the key, a line feed, and the device's id.
    ADD COLUMN serial_key text COLLATE "C",
    -- What a machine without a serial number reports in place of one; `serial` is then made up.
    ADD COLUMN reported_serial text,
    -- The address from which it enrolled last: a retry comes from there.
    ADD COLUMN enrolled_from text,
    -- When a machine without a serial number was handed its identity, which happens once.
    ADD COLUMN claimed_at timestamptz;
ALTER TABLE enrollment.token_serial ADD COLUMN serial_key text COLLATE "C";

-- As servicekit.serials.serial_key.
CREATE FUNCTION enrollment.serial_key(serial text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN btrim(lower(normalize(serial, NFKC) COLLATE "C"));

-- For the last release's services, which know no keys, and for backups of theirs.
CREATE FUNCTION enrollment.key_device() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.serial_key IS NULL THEN
        NEW.serial_key := enrollment.serial_key(NEW.serial);
        IF EXISTS (SELECT FROM enrollment.device AS d
            WHERE d.tenant_id = NEW.tenant_id AND d.serial_key = NEW.serial_key AND d.id <> NEW.id)
        THEN
            NEW.serial_key := NEW.serial_key || E'\n' || NEW.id;
        END IF;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER key_device BEFORE INSERT ON enrollment.device
    FOR EACH ROW EXECUTE FUNCTION enrollment.key_device();

CREATE FUNCTION enrollment.key_token_serial() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    NEW.serial_key := coalesce(NEW.serial_key, enrollment.serial_key(NEW.serial));
    RETURN NEW;
END $$;
CREATE TRIGGER key_token_serial BEFORE INSERT ON enrollment.token_serial
    FOR EACH ROW EXECUTE FUNCTION enrollment.key_token_serial();

-- For the next step: some rows at a time. An installation without devices can be made at once.
CREATE PROCEDURE enrollment.fill_serial_keys() LANGUAGE plpgsql AS $$
DECLARE
    behind uuid := '00000000-0000-0000-0000-000000000000';
    page uuid[];
BEGIN
    LOOP
        page := ARRAY(
            SELECT id FROM enrollment.device WHERE id > behind ORDER BY id LIMIT 10000);
        EXIT WHEN cardinality(page) = 0;
        UPDATE enrollment.device SET serial_key = enrollment.serial_key(serial)
            WHERE id = ANY (page) AND serial_key IS NULL;
        behind := page[cardinality(page)];
        COMMIT;
    END LOOP;
    behind := '00000000-0000-0000-0000-000000000000';
    LOOP
        page := ARRAY(SELECT id FROM enrollment.token WHERE id > behind ORDER BY id LIMIT 10);
        EXIT WHEN cardinality(page) = 0;
        UPDATE enrollment.token_serial SET serial_key = enrollment.serial_key(serial)
            WHERE token_id = ANY (page) AND serial_key IS NULL;
        behind := page[cardinality(page)];
        COMMIT;
    END LOOP;
END $$;
REVOKE ALL ON PROCEDURE enrollment.fill_serial_keys FROM PUBLIC;

-- Attempts to enroll with a genuine key that were refused: of each organisation the latest.
CREATE TABLE enrollment.refusal (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    token_id uuid NOT NULL,
    serial_key text NOT NULL,
    reason text NOT NULL,
    serial text NOT NULL,
    model text NOT NULL,
    source_ip text NOT NULL,
    first_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL,
    attempts integer NOT NULL,
    -- When an event last told of it.
    told_at timestamptz,
    CONSTRAINT refusal_of_one UNIQUE (tenant_id, token_id, serial_key, reason)
);
CREATE INDEX refusal_by_tenant ON enrollment.refusal (tenant_id, last_at, id);
CALL evergreen.isolate('enrollment.refusal');
GRANT SELECT, INSERT, UPDATE, DELETE ON enrollment.refusal TO evergreen_enrollment;
