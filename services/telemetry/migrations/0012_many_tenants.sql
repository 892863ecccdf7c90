-- Nearly all rows can be one tenant's. A plan for any tenant must not count on that: it would read the
-- rows of all, newest first, until it has found enough of a tenant that has none. Nor may it count on
-- there being few, and sort them.
ALTER TABLE telemetry.device ALTER COLUMN tenant_id SET (n_distinct = 20);

DO $do$
DECLARE
    partition regclass;
BEGIN
    FOR partition IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'telemetry.event'::regclass
    LOOP
        EXECUTE format('ALTER TABLE %s ALTER COLUMN tenant_id SET (n_distinct = 20)', partition);
    END LOOP;
END $do$;

-- As before, and the same for weeks to come.
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
    EXECUTE format(
        'ALTER TABLE telemetry.%I ALTER COLUMN tenant_id SET (n_distinct = 20)', partition);
END $$;
