-- Devices are found by exactly their serial number, in whatever spelling; and those whose states look
-- like those of several machines are marked (docs/adr/0047).
SELECT set_config('evergreen.scope', '*', true);

-- When states last looked so.
ALTER TABLE telemetry.device ADD COLUMN clone_suspected_at timestamptz;

-- As servicekit.serials.serial_key.
CREATE FUNCTION telemetry.serial_key(serial text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN btrim(lower(normalize(serial, NFKC) COLLATE "C"));

ALTER TABLE telemetry.device_text ADD COLUMN serial_key text COLLATE "C";

-- As before, with the key.
CREATE OR REPLACE FUNCTION telemetry.keep_device_text() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        DELETE FROM telemetry.device_text WHERE device_id = OLD.id;
    ELSIF TG_OP = 'INSERT' OR (OLD.tenant_id, OLD.name, OLD.serial, OLD.model)
        IS DISTINCT FROM (NEW.tenant_id, NEW.name, NEW.serial, NEW.model)
    THEN
        INSERT INTO telemetry.device_text (device_id, tenant_id, name, content, serial_key)
        VALUES (NEW.id, NEW.tenant_id, NEW.name,
            telemetry.text_of(NEW.name, NEW.serial, NEW.model), telemetry.serial_key(NEW.serial))
        ON CONFLICT (device_id) DO UPDATE SET
            tenant_id = excluded.tenant_id, name = excluded.name, content = excluded.content,
            serial_key = excluded.serial_key;
    END IF;
    RETURN NULL;
END $$;

-- For the next step, outside a transaction: some devices at a time.
CREATE PROCEDURE telemetry.fill_serial_keys() LANGUAGE plpgsql AS $$
DECLARE
    behind uuid := '00000000-0000-0000-0000-000000000000';
    page uuid[];
BEGIN
    LOOP
        page := ARRAY(
            SELECT device_id FROM telemetry.device_text WHERE device_id > behind
            ORDER BY device_id LIMIT 10000);
        EXIT WHEN cardinality(page) = 0;
        UPDATE telemetry.device_text AS t SET serial_key = telemetry.serial_key(d.serial)
            FROM telemetry.device AS d
            WHERE d.id = t.device_id AND t.device_id = ANY (page) AND t.serial_key IS NULL;
        behind := page[cardinality(page)];
        COMMIT;
    END LOOP;
END $$;

-- The devices of the scope with a serial number.
CREATE FUNCTION telemetry.devices_with_serial(key text) RETURNS uuid[]
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT ARRAY(
        SELECT t.device_id FROM telemetry.device_text AS t
        WHERE t.serial_key = key
        AND ((SELECT evergreen.system_scope())
            OR t.tenant_id = ANY ((SELECT evergreen.tenant_scope())::uuid[]))
        LIMIT 10000)
$$;

REVOKE ALL ON ROUTINE telemetry.fill_serial_keys, telemetry.devices_with_serial FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.devices_with_serial TO evergreen_telemetry;
