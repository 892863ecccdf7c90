-- Devices are found by any part of their name, serial number, model or id, and by when they called
-- last, however many there are (docs/adr/0026). The text lies in a table of its own: reports never touch it, it is small enough
-- to be looked through, and an index of trigrams says where it is worth it.
--
-- The extension is a trusted one: it needs no more than the schemas do, CREATE on the database.
CREATE EXTENSION IF NOT EXISTS pg_trgm SCHEMA telemetry;

-- Row security would keep the index from being used: LIKE is no operator that PostgreSQL trusts with
-- rows that are not the caller's. So nobody but the owner has a right on this table; the service asks
-- by a function that keeps to the scope of the transaction.
CREATE TABLE telemetry.device_text (
    device_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    -- As in telemetry.device: what lists sort by.
    name text NOT NULL,
    -- All that is searched but the id, in small letters, a line each. Ids have groups that begin alike
    -- in all of them, which would make "lab-7" look frequent.
    content text NOT NULL
);
CREATE INDEX device_text_by_tenant ON telemetry.device_text (tenant_id);

CREATE FUNCTION telemetry.text_of(name text, serial text, model text) RETURNS text
    LANGUAGE sql STABLE
    RETURN lower(concat_ws(E'\n', name, nullif(serial, name), model));

-- Also for the release before this one, which knows nothing of it.
CREATE FUNCTION telemetry.keep_device_text() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        DELETE FROM telemetry.device_text WHERE device_id = OLD.id;
    ELSIF TG_OP = 'INSERT' OR (OLD.tenant_id, OLD.name, OLD.serial, OLD.model)
        IS DISTINCT FROM (NEW.tenant_id, NEW.name, NEW.serial, NEW.model)
    THEN
        INSERT INTO telemetry.device_text (device_id, tenant_id, name, content)
        VALUES (NEW.id, NEW.tenant_id, NEW.name,
            telemetry.text_of(NEW.name, NEW.serial, NEW.model))
        ON CONFLICT (device_id) DO UPDATE SET
            tenant_id = excluded.tenant_id, name = excluded.name, content = excluded.content;
    END IF;
    RETURN NULL;
END $$;

-- For the next step, outside a transaction: some devices at a time, so that nothing that reads what is
-- committed waits for long. A database without devices can be made within one transaction.
CREATE PROCEDURE telemetry.fill_device_text() LANGUAGE plpgsql AS $$
DECLARE
    behind uuid := '00000000-0000-0000-0000-000000000000';
    page uuid[];
BEGIN
    LOOP
        page := ARRAY(
            SELECT id FROM telemetry.device WHERE id > behind ORDER BY id LIMIT 10000);
        EXIT WHEN cardinality(page) = 0;
        INSERT INTO telemetry.device_text (device_id, tenant_id, name, content)
            SELECT id, tenant_id, name, telemetry.text_of(name, serial, model)
            FROM telemetry.device WHERE id = ANY (page)
            ON CONFLICT (device_id) DO NOTHING;
        behind := page[cardinality(page)];
        COMMIT;
    END LOOP;
END $$;

-- The first devices of the scope behind a place in the list whose text is LIKE a pattern, in the order
-- of the list. A row of NULLs instead when there are too many to put them in order: then it is no
-- rare text, and the list itself has some soon.
CREATE FUNCTION telemetry.devices_with(
    pattern text, after_name text, after_id uuid, most integer, too_many integer)
    RETURNS TABLE (id uuid, name text)
    LANGUAGE plpgsql STABLE ROWS 100 SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    -- By the trigrams, by the tenants, or all of the table: never row by row in the order of ids.
    SET enable_indexscan = off AS $$
BEGIN
    -- Planned each time, for how rare the text is says what is best.
    RETURN QUERY EXECUTE
        'WITH found AS MATERIALIZED (SELECT t.device_id, t.name FROM telemetry.device_text AS t'
        ' WHERE (t.content LIKE lower($1)'
        || CASE WHEN pattern ~* '^[-0-9a-f%]*$' THEN ' OR t.device_id::text LIKE lower($1)' ELSE '' END
        || ') AND (t.name, t.device_id) > ($2, $3)'
        || CASE WHEN evergreen.system_scope() THEN '' ELSE ' AND t.tenant_id = ANY ($6)' END
        || ' LIMIT $5)'
        ' SELECT NULL::uuid, NULL::text WHERE (SELECT count(*) FROM found) = $5 UNION ALL'
        ' (SELECT * FROM found WHERE (SELECT count(*) FROM found) < $5'
        ' ORDER BY found.name, found.device_id LIMIT $4)'
        USING pattern, after_name, after_id, most, too_many,
            CASE WHEN evergreen.system_scope() THEN NULL ELSE evergreen.tenant_scope() END;
END $$;

REVOKE ALL ON ROUTINE telemetry.keep_device_text, telemetry.fill_device_text,
    telemetry.devices_with FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.devices_with TO evergreen_telemetry;

-- Last, for now the table is locked, if only for a moment.
CREATE TRIGGER keep_text
    AFTER INSERT OR DELETE OR UPDATE OF tenant_id, name, serial, model ON telemetry.device
    FOR EACH ROW EXECUTE FUNCTION telemetry.keep_device_text();

-- The day of the last contact, or an earlier one: the release before this one does not know it. A
-- report changes it once a day, so that an index can cover it.
ALTER TABLE telemetry.device ADD COLUMN seen_day date NOT NULL DEFAULT '-infinity';
