-- An event whose device has a wrong clock is listed where it was received: `occurred_at` is then
-- `received_at`, and `device_time` what the device said.
SELECT set_config('evergreen.scope', '*', true);

ALTER TABLE telemetry.event ADD COLUMN device_time timestamptz;

-- Those that stand before all others in every list; an index finds them, and they are few.
UPDATE telemetry.event SET device_time = occurred_at, occurred_at = received_at
    WHERE occurred_at > now() + interval '15 minutes'
    AND occurred_at > received_at + interval '15 minutes';

-- As before, with the index of lists in the order in which events were received.
CREATE OR REPLACE PROCEDURE telemetry.make_event_partition(partition name)
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format(
        'CREATE TABLE telemetry.%I (LIKE telemetry.event INCLUDING DEFAULTS INCLUDING CONSTRAINTS'
        ' INCLUDING INDEXES INCLUDING STATISTICS)', partition);
    EXECUTE format('ALTER TABLE telemetry.%I ADD PRIMARY KEY (device_id, event_id)', partition);
    EXECUTE format(
        'CREATE INDEX %I ON telemetry.%I (tenant_id, type, occurred_at, id)',
        partition || '_types', partition);
    EXECUTE format(
        'CREATE INDEX %I ON telemetry.%I (tenant_id, received_at, id)',
        partition || '_received', partition);
    -- Most events are no trouble; those that are, are what people look for.
    EXECUTE format(
        'CREATE INDEX %I ON telemetry.%I (occurred_at, id) WHERE severity <> ''info''',
        partition || '_trouble', partition);
    EXECUTE format(
        'CREATE INDEX %I ON telemetry.%I (tenant_id, occurred_at, id) WHERE severity <> ''info''',
        partition || '_tenant_trouble', partition);
    EXECUTE format(
        'ALTER TABLE telemetry.%I ALTER COLUMN tenant_id SET (n_distinct = 20)', partition);
END $$;
