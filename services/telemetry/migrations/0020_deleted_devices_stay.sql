-- A deleted device is noted until it enrolls again: what it sent before it was locked out may be written
-- late, and brings nothing of it back.
ALTER TABLE telemetry.deleted_device
    -- When nothing of it was left.
    ADD COLUMN erased_at timestamptz,
    -- When it had enrolled again before all of it was erased.
    ADD COLUMN back_at timestamptz;
GRANT UPDATE ON telemetry.deleted_device TO evergreen_telemetry;

-- As before, but for the end of a device's events: that is when it came back, not when the service heard
-- of the deletion.
CREATE OR REPLACE FUNCTION telemetry.erase_events(tenant uuid, device uuid, most integer) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    done record;
    until timestamptz := 'infinity';
    partition regclass;
    gone bigint;
    total bigint := 0;
BEGIN
    IF device IS NULL THEN
        PERFORM FROM telemetry.closed_tenant WHERE tenant_id = tenant AND status <> 'archived';
    ELSE
        SELECT coalesce(back_at, 'infinity') INTO until FROM telemetry.deleted_device
            WHERE device_id = device AND tenant_id = tenant;
    END IF;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'neither the tenant nor the device is being deleted'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    SELECT done_xid, done_id INTO done FROM telemetry.event_relay;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    FOR partition IN
        SELECT inhrelid FROM pg_inherits WHERE inhparent = 'telemetry.event'::regclass
        ORDER BY inhrelid
    LOOP
        EXIT WHEN total >= most;
        -- Each has an index of its own; one statement for both would use neither.
        EXECUTE format(
            'DELETE FROM %1$s WHERE ctid = ANY (ARRAY(SELECT ctid FROM %1$s'
            ' WHERE %2$s AND (xid, id) <= ($3, $4) AND received_at <= $6 LIMIT $5))', partition,
            CASE WHEN device IS NULL THEN 'tenant_id = $1' ELSE 'device_id = $2 AND tenant_id = $1' END)
            USING tenant, device, done.done_xid, done.done_id, most - total, until;
        GET DIAGNOSTICS gone = ROW_COUNT;
        total := total + gone;
    END LOOP;
    RETURN total;
END $$;
