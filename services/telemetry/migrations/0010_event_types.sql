-- Events of one type are found by an index, however rare the type is. As before, with one index more.
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
    -- Most events are no trouble; those that are, are what people look for.
    EXECUTE format(
        'CREATE INDEX %I ON telemetry.%I (occurred_at, id) WHERE severity <> ''info''',
        partition || '_trouble', partition);
    EXECUTE format(
        'CREATE INDEX %I ON telemetry.%I (tenant_id, occurred_at, id) WHERE severity <> ''info''',
        partition || '_tenant_trouble', partition);
END $$;
