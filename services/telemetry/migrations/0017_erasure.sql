-- Events of a deleted organisation or device go before their time.

-- Devices that were deleted and may still have events here.
CREATE TABLE telemetry.deleted_device (
    device_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    heard_at timestamptz NOT NULL DEFAULT now()
);
CALL evergreen.isolate('telemetry.deleted_device');
GRANT SELECT, INSERT, DELETE ON telemetry.deleted_device TO evergreen_telemetry;
GRANT DELETE ON telemetry.device TO evergreen_telemetry;

-- Deletes some events of a tenant, or of one of its devices, that are published; answers how many. As
-- the owner: the service itself cannot delete an event. `device` is NULL for all of them.
CREATE FUNCTION telemetry.erase_events(tenant uuid, device uuid, most integer) RETURNS bigint
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
        -- It may have been allowed to enroll again since.
        SELECT heard_at INTO until FROM telemetry.deleted_device
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
REVOKE ALL ON FUNCTION telemetry.erase_events FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.erase_events TO evergreen_telemetry;

SELECT set_config('evergreen.scope', '*', true);
UPDATE telemetry.device_access AS a SET tenant_id = d.tenant_id
    FROM telemetry.device AS d WHERE d.id = a.device_id;
