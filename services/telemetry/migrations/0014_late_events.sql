-- What is kept no longer is told by a clock that nobody can push far ahead at once; and an event that
-- came late counts from when it came.
SELECT set_config('evergreen.scope', '*', true);

-- How far time has come for retention. It follows the service's clock, but only so much faster than
-- the service runs: a clock that is years ahead at a start deletes nothing.
CREATE TABLE telemetry.retention_cursor (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    reached timestamptz NOT NULL
);
-- No earlier than this file was written: the clock may have been unset at the first start.
INSERT INTO telemetry.retention_cursor (reached)
    SELECT greatest('2026-11-01', least(now(), (
        SELECT received_at + interval '1 day' FROM telemetry.event ORDER BY xid DESC, id DESC LIMIT 1)));
GRANT SELECT, UPDATE ON telemetry.retention_cursor TO evergreen_telemetry;

-- Drops the oldest week, if no tenant keeps it and all of it is published; answers its partition.
-- Events of it that came so late that they are kept stay, in a new partition in its place (`…_rest`).
-- That one is dropped when `sweep_partition` has emptied it. A week of which more than `most` events
-- came late becomes such a partition itself: to copy them would take too long.
CREATE FUNCTION telemetry.drop_oldest_week(
    moment timestamptz, default_days integer, most integer) RETURNS name
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

REVOKE ALL ON FUNCTION telemetry.drop_oldest_week FROM PUBLIC;

CREATE OR REPLACE FUNCTION telemetry.drop_events(moment timestamptz, default_days integer) RETURNS name
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' AS $$
BEGIN
    RETURN telemetry.drop_oldest_week(moment, default_days, 100000);
END $$;

-- As before, but events that came late are kept.
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
    kept_from timestamptz;
    deleted integer;
BEGIN
    SELECT done_xid, done_id INTO done FROM telemetry.event_relay;
    IF NOT FOUND OR NOT pg_try_advisory_xact_lock(hashtext('telemetry.event retention')) THEN
        RETURN 0;
    END IF;
    FOR week IN
        SELECT * FROM telemetry.event_week
        WHERE end_day <= (moment - make_interval(days => fewest))::date
        AND end_day > (moment - make_interval(days => most_days))::date
        AND partition NOT LIKE '%\_rest' ORDER BY first_day
    LOOP
        tenant := '00000000-0000-0000-0000-000000000000';
        LOOP
            -- The next tenant of the week.
            EXECUTE format(
                'SELECT tenant_id FROM telemetry.%I WHERE tenant_id > $1'
                ' ORDER BY tenant_id LIMIT 1', week.partition) INTO tenant USING tenant;
            EXIT WHEN tenant IS NULL;
            kept_from := moment - make_interval(
                days => telemetry.days_kept(tenant, default_days));
            CONTINUE WHEN week.end_day > kept_from::date;
            EXECUTE format(
                'DELETE FROM telemetry.%1$I WHERE ctid = ANY (ARRAY(SELECT ctid FROM telemetry.%1$I'
                ' WHERE tenant_id = $1 AND (xid, id) <= ($2, $3) AND received_at < $4 LIMIT $5))',
                week.partition)
                USING tenant, done.done_xid, done.done_id, kept_from, most;
            GET DIAGNOSTICS deleted = ROW_COUNT;
            IF deleted > 0 THEN
                RETURN deleted;
            END IF;
        END LOOP;
    END LOOP;
    RETURN 0;
END $$;

-- As `sweep_events`, which the release before calls, for any partition whose events go by the time
-- at which they came.
CREATE FUNCTION telemetry.sweep_partition(
    partition name, after_xid xid8, after_id uuid, moment timestamptz, default_days integer,
    most integer, OUT next_xid xid8, OUT next_id uuid, OUT deleted integer)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    fewest integer := least(
        default_days, (SELECT min(event_days) FROM telemetry.retention));
    done record;
    came timestamptz;
BEGIN
    deleted := 0;
    SELECT done_xid, done_id INTO done FROM telemetry.event_relay;
    IF NOT FOUND OR NOT (partition IN ('event_astray', 'event_undated') OR EXISTS (
            SELECT FROM telemetry.event_week AS w
            WHERE w.partition = sweep_partition.partition AND w.partition LIKE '%\_rest'))
        OR NOT pg_try_advisory_xact_lock(hashtext('telemetry.event retention'))
    THEN
        RETURN;
    END IF;
    EXECUTE format($sql$
        WITH page AS MATERIALIZED (
            SELECT ctid, xid, id, tenant_id, received_at FROM telemetry.%1$I
            WHERE (xid, id) > ($1, $2) AND (xid, id) <= ($3, $4) ORDER BY xid, id LIMIT $7
        ), gone AS (
            DELETE FROM telemetry.%1$I WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM page WHERE received_at < $5
                    - make_interval(days => telemetry.days_kept(tenant_id, $6))))
            RETURNING 1
        ), last AS (
            SELECT xid, id, received_at FROM page ORDER BY page.xid DESC, id DESC LIMIT 1
        )
        SELECT last.xid, last.id, (SELECT count(*) FROM gone), last.received_at FROM last
        $sql$, partition)
        INTO next_xid, next_id, deleted, came
        USING after_xid, after_id, done.done_xid, done.done_id, moment, default_days, most;
    deleted := coalesce(deleted, 0);
    IF came >= moment - make_interval(days => fewest) THEN
        next_xid := NULL;
        next_id := NULL;
    END IF;
END $$;

REVOKE ALL ON FUNCTION telemetry.sweep_partition FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.sweep_partition TO evergreen_telemetry;
