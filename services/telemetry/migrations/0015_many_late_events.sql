-- As before, but a bounded number of events is copied: a week of which many came late would else be
-- tried again and again, and keep those behind it from being dropped.
DROP FUNCTION telemetry.drop_events(timestamptz, integer);

-- Drops the oldest week, if no tenant keeps it and all of it is published; answers its partition.
-- Events of it that came so late that they are kept stay, in a new partition in its place (`…_rest`).
-- That one is dropped when `sweep_partition` has emptied it. A week of which more than `most` events
-- came late becomes such a partition itself: to copy them would take too long.
CREATE FUNCTION telemetry.drop_events(
    moment timestamptz, default_days integer, most integer DEFAULT 100000) RETURNS name
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' AS $$
DECLARE
    keeps_from timestamptz := moment - make_interval(days => greatest(
        default_days, (SELECT max(event_days) FROM telemetry.retention)));
    nobody CONSTANT uuid := '00000000-0000-0000-0000-000000000000';
    week telemetry.event_week;
    found_one boolean := false;
    rest name;
    done record;
    old record;
    begun pg_snapshot;
    unpublished text;
    late text;
    holds boolean;
    found bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('telemetry.event partitions')) THEN
        RETURN NULL;
    END IF;
    FOR week IN SELECT * FROM telemetry.event_week
        WHERE end_day <= keeps_from::date ORDER BY first_day
    LOOP
        holds := false;
        IF week.partition LIKE '%\_rest' THEN
            EXECUTE format('SELECT EXISTS (SELECT FROM telemetry.%I)', week.partition) INTO holds;
        END IF;
        found_one := NOT holds;
        EXIT WHEN found_one;
    END LOOP;
    IF NOT found_one THEN
        RETURN NULL;
    END IF;
    SELECT done_xid AS xid, done_id AS id INTO done FROM telemetry.event_relay;
    unpublished := format(
        'SELECT EXISTS (SELECT FROM telemetry.%I WHERE (xid, id) > ($1, $2))', week.partition);
    EXECUTE unpublished INTO holds USING coalesce(done.xid, '0'), coalesce(done.id, nobody);
    IF holds THEN
        RETURN NULL;
    END IF;
    -- Events come nearly in the order of their transactions: only behind this one are some to keep.
    EXECUTE format(
        'SELECT xid, id FROM telemetry.%I WHERE received_at < $1'
        ' ORDER BY xid DESC, id DESC LIMIT 1', week.partition)
        INTO old USING keeps_from - interval '1 hour';
    late := format(
        ' FROM telemetry.%I WHERE (xid, id) > ($1, $2) AND xid >= $3'
        ' AND received_at >= $4 - make_interval(days => telemetry.days_kept(tenant_id, $5))',
        week.partition);
    begun := pg_current_snapshot();
    EXECUTE 'SELECT count(*) FROM (SELECT 1' || late || ' LIMIT $6 + 1) AS few' INTO found
        USING coalesce(old.xid, '0'), coalesce(old.id, nobody), '0'::xid8, moment, default_days, most;
    IF found > most THEN
        EXECUTE format(
            'ALTER TABLE telemetry.%I RENAME TO %I', week.partition, week.partition || '_rest');
        UPDATE telemetry.event_week SET partition = week.partition || '_rest'
            WHERE first_day = week.first_day;
        RETURN NULL;
    END IF;
    IF found > 0 THEN
        rest := week.partition || '_rest';
        CALL telemetry.make_event_partition(rest);
        -- So that attaching it does not read it.
        EXECUTE format(
            'ALTER TABLE telemetry.%I ADD CONSTRAINT its_days CHECK (id_day >= %L AND id_day < %L)',
            rest, week.first_day, week.end_day);
        EXECUTE format('INSERT INTO telemetry.%I SELECT *', rest) || late
            USING coalesce(old.xid, '0'), coalesce(old.id, nobody), '0'::xid8, moment, default_days;
    END IF;
    -- Once more, when nobody can add an event: one of that week may have come meanwhile.
    LOCK TABLE ONLY telemetry.event IN ACCESS EXCLUSIVE MODE;
    EXECUTE unpublished INTO holds USING coalesce(done.xid, '0'), coalesce(done.id, nobody);
    IF NOT holds AND rest IS NULL THEN
        EXECUTE 'SELECT EXISTS (SELECT' || late || ')' INTO holds
            USING coalesce(old.xid, '0'), coalesce(old.id, nobody), pg_snapshot_xmin(begun),
                moment, default_days;
    END IF;
    IF holds THEN
        IF rest IS NOT NULL THEN
            EXECUTE format('DROP TABLE telemetry.%I', rest);
        END IF;
        RETURN NULL;
    END IF;
    EXECUTE format('ALTER TABLE telemetry.event DETACH PARTITION telemetry.%I', week.partition);
    IF rest IS NULL THEN
        DELETE FROM telemetry.event_week WHERE first_day = week.first_day;
    ELSE
        EXECUTE format('INSERT INTO telemetry.%I SELECT *', rest) || late || ' ON CONFLICT DO NOTHING'
            USING coalesce(old.xid, '0'), coalesce(old.id, nobody), pg_snapshot_xmin(begun),
                moment, default_days;
        EXECUTE format(
            'ALTER TABLE telemetry.event ATTACH PARTITION telemetry.%I FOR VALUES FROM (%L) TO (%L)',
            rest, week.first_day, week.end_day);
        EXECUTE format('ALTER TABLE telemetry.%I DROP CONSTRAINT its_days', rest);
        UPDATE telemetry.event_week SET partition = rest WHERE first_day = week.first_day;
    END IF;
    EXECUTE format('DROP TABLE telemetry.%I', week.partition);
    RETURN week.partition;
END $$;

REVOKE ALL ON FUNCTION telemetry.drop_events FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.drop_events TO evergreen_telemetry;
