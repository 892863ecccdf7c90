-- As before, but it leaves weeks that nobody keeps to be dropped, if not now then soon.
CREATE OR REPLACE FUNCTION telemetry.expire_events(moment timestamptz, default_days integer, most integer)
    RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    fewest integer := least(
        default_days, (SELECT min(event_days) FROM telemetry.retention));
    most_days integer := greatest(
        default_days, (SELECT max(event_days) FROM telemetry.retention));
    done record;
    week telemetry.event_week;
    tenant uuid;
    deleted integer;
BEGIN
    SELECT done_xid, done_id INTO done FROM telemetry.event_relay;
    IF NOT FOUND OR NOT pg_try_advisory_xact_lock(hashtext('telemetry.event retention')) THEN
        RETURN 0;
    END IF;
    FOR week IN
        SELECT * FROM telemetry.event_week
        WHERE end_day <= (moment - make_interval(days => fewest))::date
        AND end_day > (moment - make_interval(days => most_days))::date ORDER BY first_day
    LOOP
        tenant := '00000000-0000-0000-0000-000000000000';
        LOOP
            -- The next tenant of the week.
            EXECUTE format(
                'SELECT tenant_id FROM telemetry.%I WHERE tenant_id > $1'
                ' ORDER BY tenant_id LIMIT 1', week.partition) INTO tenant USING tenant;
            EXIT WHEN tenant IS NULL;
            CONTINUE WHEN week.end_day > (moment - make_interval(
                days => telemetry.days_kept(tenant, default_days)))::date;
            EXECUTE format(
                'DELETE FROM telemetry.%1$I WHERE ctid = ANY (ARRAY(SELECT ctid FROM telemetry.%1$I'
                ' WHERE tenant_id = $1 AND (xid, id) <= ($2, $3) LIMIT $4))', week.partition)
                USING tenant, done.done_xid, done.done_id, most;
            GET DIAGNOSTICS deleted = ROW_COUNT;
            IF deleted > 0 THEN
                RETURN deleted;
            END IF;
        END LOOP;
    END LOOP;
    RETURN 0;
END $$;
