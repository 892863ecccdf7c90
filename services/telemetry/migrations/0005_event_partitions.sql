-- The last step: the table of events becomes the first partition of a new one. Nothing is copied,
-- read or indexed, but for the few events of devices whose clocks are ahead.
SELECT set_config('evergreen.scope', '*', true);

LOCK TABLE telemetry.event IN ACCESS EXCLUSIVE MODE;
INSERT INTO telemetry.event_to_move
    SELECT NULL, device_id, event_id FROM telemetry.event
    WHERE xid >= (SELECT seen_before FROM telemetry.event_to_move WHERE device_id IS NULL)
    AND telemetry.event_day(event_id) > '-infinity';

ALTER TABLE telemetry.event RENAME TO event_undated;
ALTER INDEX telemetry.event_pkey RENAME TO event_undated_pkey;
ALTER INDEX telemetry.event_by_time RENAME TO event_undated_by_time;
ALTER INDEX telemetry.event_by_tenant RENAME TO event_undated_by_tenant;
ALTER INDEX telemetry.event_by_device RENAME TO event_undated_by_device;
ALTER INDEX telemetry.event_by_commit RENAME TO event_undated_by_commit;
ALTER STATISTICS telemetry.event_device_tenant RENAME TO event_undated_device_tenant;

-- It has no key: each partition has one, and the partition follows from the key.
CREATE TABLE telemetry.event (
    device_id uuid NOT NULL,
    event_id text NOT NULL,
    id uuid NOT NULL,
    tenant_id uuid NOT NULL,
    type text NOT NULL,
    severity text NOT NULL
        CONSTRAINT event_severity_check CHECK (severity IN ('info', 'warning', 'error')),
    message text NOT NULL,
    payload json,
    occurred_at timestamptz NOT NULL,
    received_at timestamptz NOT NULL,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    -- telemetry.event_day(event_id): the day of the event, or -infinity if its id tells none.
    id_day date NOT NULL DEFAULT '-infinity'
) PARTITION BY RANGE (id_day);
CREATE INDEX event_by_time ON telemetry.event (occurred_at, id);
CREATE INDEX event_by_tenant ON telemetry.event (tenant_id, occurred_at, id);
CREATE INDEX event_by_device ON telemetry.event (device_id, occurred_at, id);
CREATE INDEX event_by_commit ON telemetry.event (xid, id);
CREATE STATISTICS telemetry.event_device_tenant (dependencies)
    ON device_id, tenant_id FROM telemetry.event;

-- Partitions are reached through the table only, whose row security counts then: nobody but their
-- owner has a right on one of them.
REVOKE ALL ON telemetry.event_undated FROM evergreen_telemetry;
DROP POLICY tenant_scope ON telemetry.event_undated;
ALTER TABLE telemetry.event_undated NO FORCE ROW LEVEL SECURITY, DISABLE ROW LEVEL SECURITY;
CALL evergreen.isolate('telemetry.event');
GRANT SELECT, INSERT ON telemetry.event TO evergreen_telemetry;

-- The weeks that have a partition.
CREATE TABLE telemetry.event_week (
    first_day date PRIMARY KEY,
    end_day date NOT NULL UNIQUE,
    partition name NOT NULL UNIQUE
);
GRANT SELECT ON telemetry.event_week TO evergreen_telemetry;

CREATE PROCEDURE telemetry.make_event_partition(partition name)
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format(
        'CREATE TABLE telemetry.%I (LIKE telemetry.event INCLUDING DEFAULTS INCLUDING CONSTRAINTS'
        ' INCLUDING INDEXES INCLUDING STATISTICS)', partition);
    EXECUTE format('ALTER TABLE telemetry.%I ADD PRIMARY KEY (device_id, event_id)', partition);
    -- Most events are no trouble; those that are, are what people look for.
    EXECUTE format(
        'CREATE INDEX %I ON telemetry.%I (occurred_at, id) WHERE severity <> ''info''',
        partition || '_trouble', partition);
    EXECUTE format(
        'CREATE INDEX %I ON telemetry.%I (tenant_id, occurred_at, id) WHERE severity <> ''info''',
        partition || '_tenant_trouble', partition);
END $$;

-- Makes the partition of a week, and moves into it what came for its days before: from devices whose
-- clocks are far ahead, or while the service that makes weeks did not run.
CREATE PROCEDURE telemetry.make_event_week(begins date, ends date)
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    week name := 'event_' || to_char(begins, 'YYYYMMDD');
BEGIN
    CALL telemetry.make_event_partition(week);
    LOCK TABLE telemetry.event_astray IN ACCESS EXCLUSIVE MODE;
    EXECUTE format(
        'WITH found AS (DELETE FROM telemetry.event_astray WHERE id_day >= $1 AND id_day < $2'
        ' RETURNING *) INSERT INTO telemetry.%I SELECT * FROM found', week) USING begins, ends;
    EXECUTE format(
        'ALTER TABLE telemetry.event ATTACH PARTITION telemetry.%I FOR VALUES FROM (%L) TO (%L)',
        week, begins, ends);
    INSERT INTO telemetry.event_week (first_day, end_day, partition) VALUES (begins, ends, week);
END $$;

-- Makes one more week, if the weeks do not reach until a day yet; answers until where they reach.
-- NULL when another process is at it.
CREATE FUNCTION telemetry.extend_events(until date) RETURNS date
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' AS $$
DECLARE
    begins date;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('telemetry.event partitions')) THEN
        RETURN NULL;
    END IF;
    SELECT max(end_day) INTO begins FROM telemetry.event_week;
    begins := coalesce(
        begins, greatest(telemetry.events_begin(), date_trunc('week', current_date)::date));
    IF begins >= until THEN
        RETURN begins;
    END IF;
    CALL telemetry.make_event_week(begins, date_trunc('week', begins)::date + 7);
    RETURN date_trunc('week', begins)::date + 7;
END $$;

-- The partitions of this moment: ids that tell no day (and all that was stored before), weeks, and
-- days for which there is no week.
CALL telemetry.make_event_partition('event_astray');
ALTER TABLE telemetry.event ATTACH PARTITION telemetry.event_astray DEFAULT;
DO $do$
BEGIN
    EXECUTE format(
        'ALTER TABLE telemetry.event ATTACH PARTITION telemetry.event_undated'
        ' FOR VALUES FROM (MINVALUE) TO (%L)', telemetry.events_begin());
    WHILE telemetry.extend_events(current_date + 14) < current_date + 14 LOOP
    END LOOP;
END $do$;

WITH moved AS (
    DELETE FROM telemetry.event_undated AS e USING telemetry.event_to_move AS m
    WHERE e.device_id = m.device_id AND e.event_id = m.event_id
    RETURNING e.*
)
INSERT INTO telemetry.event
    (device_id, event_id, id, tenant_id, type, severity, message, payload, occurred_at,
     received_at, xid, id_day)
SELECT device_id, event_id, id, tenant_id, type, severity, message, payload, occurred_at,
    received_at, xid, telemetry.event_day(event_id)
FROM moved;
DROP TABLE telemetry.event_to_move;

REVOKE ALL ON ROUTINE telemetry.make_event_partition, telemetry.make_event_week,
    telemetry.extend_events FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.extend_events TO evergreen_telemetry;
