-- What devices and their organisations have stored, day by day, and what their quarantine holds: so
-- that one of them cannot fill the disk of all.
SELECT set_config('evergreen.scope', '*', true);

-- Bytes that were stored on a day (UTC). Devices that store little have no row.
CREATE TABLE telemetry.storage_use (
    day date NOT NULL,
    -- device_events, device_states, tenant_events or tenant_states
    what text NOT NULL,
    -- The device, or the organisation.
    subject uuid NOT NULL,
    tenant_id uuid NOT NULL,
    bytes bigint NOT NULL,
    limit_bytes bigint NOT NULL,
    PRIMARY KEY (day, what, subject)
);
CREATE INDEX storage_use_full ON telemetry.storage_use (day) WHERE bytes >= limit_bytes;
CALL evergreen.isolate('telemetry.storage_use');
GRANT SELECT, INSERT, UPDATE, DELETE ON telemetry.storage_use TO evergreen_telemetry;

-- What is in telemetry.quarantined_event, by device. Triggers keep it, also for the release before.
CREATE TABLE telemetry.quarantine_use (
    device_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    bytes bigint NOT NULL,
    events bigint NOT NULL
);
CREATE INDEX quarantine_use_by_tenant ON telemetry.quarantine_use (tenant_id, bytes);
CALL evergreen.isolate('telemetry.quarantine_use');
GRANT SELECT ON telemetry.quarantine_use TO evergreen_telemetry;

CREATE FUNCTION telemetry.count_quarantine() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- In one order, so that two statements cannot block each other.
    IF TG_OP = 'INSERT' THEN
        INSERT INTO telemetry.quarantine_use AS u (device_id, tenant_id, bytes, events)
            SELECT device_id, min(tenant_id::text)::uuid, sum(octet_length(content)), count(*)
            FROM changed GROUP BY device_id ORDER BY device_id
            ON CONFLICT (device_id) DO UPDATE SET
                bytes = u.bytes + excluded.bytes, events = u.events + excluded.events;
    ELSE
        PERFORM 1 FROM telemetry.quarantine_use
            WHERE device_id IN (SELECT device_id FROM changed) ORDER BY device_id FOR UPDATE;
        UPDATE telemetry.quarantine_use AS u
            SET bytes = greatest(u.bytes - c.bytes, 0), events = greatest(u.events - c.events, 0)
            FROM (SELECT device_id, sum(octet_length(content)) AS bytes, count(*) AS events
                FROM changed GROUP BY device_id) AS c
            WHERE u.device_id = c.device_id;
        DELETE FROM telemetry.quarantine_use
            WHERE events = 0 AND device_id IN (SELECT device_id FROM changed);
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER count_more AFTER INSERT ON telemetry.quarantined_event
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION telemetry.count_quarantine();
CREATE TRIGGER count_less AFTER DELETE ON telemetry.quarantined_event
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION telemetry.count_quarantine();

INSERT INTO telemetry.quarantine_use (device_id, tenant_id, bytes, events)
    SELECT device_id, min(tenant_id::text)::uuid, sum(octet_length(content)), count(*)
    FROM telemetry.quarantined_event GROUP BY device_id;
