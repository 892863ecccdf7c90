-- Retention: whole weeks are dropped, the rest is deleted a few rows at a time. Nothing goes that
-- is not published yet. The functions run as the owner: the service itself cannot delete an event.

-- How long a tenant keeps its events, where that is not the setting.
CREATE TABLE telemetry.retention (
    tenant_id uuid PRIMARY KEY,
    event_days integer NOT NULL CHECK (event_days BETWEEN 7 AND 730),
    changed_at timestamptz NOT NULL
);
CALL evergreen.isolate('telemetry.retention');
GRANT SELECT, INSERT, UPDATE, DELETE ON telemetry.retention TO evergreen_telemetry;

-- How many days a tenant keeps its events.
CREATE FUNCTION telemetry.days_kept(tenant uuid, default_days integer) RETURNS integer
    LANGUAGE sql STABLE
    RETURN coalesce(
        (SELECT r.event_days FROM telemetry.retention AS r WHERE r.tenant_id = tenant),
        default_days);

-- Drops the oldest week, if no tenant keeps it and all of it is published; answers its partition.
-- Also when the stream is published anew: a new one gets it first.
CREATE FUNCTION telemetry.drop_events(moment timestamptz, default_days integer) RETURNS name
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' AS $$
DECLARE
    days integer := greatest(
        default_days, (SELECT max(event_days) FROM telemetry.retention));
    week telemetry.event_week;
    nobody CONSTANT uuid := '00000000-0000-0000-0000-000000000000';
    done record;
    waits boolean;
BEGIN
    SELECT * INTO week FROM telemetry.event_week
        WHERE end_day <= (moment - make_interval(days => days))::date ORDER BY first_day LIMIT 1;
    IF NOT FOUND OR NOT pg_try_advisory_xact_lock(hashtext('telemetry.event partitions')) THEN
        RETURN NULL;
    END IF;
    SELECT done_xid, done_id INTO done FROM telemetry.event_relay;
    FOR attempt IN 1..2 LOOP
        EXECUTE format(
            'SELECT EXISTS (SELECT FROM telemetry.%I WHERE (xid, id) > ($1, $2))', week.partition)
            INTO waits USING coalesce(done.done_xid, '0'), coalesce(done.done_id, nobody);
        IF waits THEN
            RETURN NULL;
        END IF;
        -- Once more when nobody can add an event: one of that week may have come meanwhile.
        LOCK TABLE ONLY telemetry.event IN ACCESS EXCLUSIVE MODE;
    END LOOP;
    EXECUTE format('ALTER TABLE telemetry.event DETACH PARTITION telemetry.%I', week.partition);
    EXECUTE format('DROP TABLE telemetry.%I', week.partition);
    DELETE FROM telemetry.event_week WHERE first_day = week.first_day;
    RETURN week.partition;
END $$;

-- Deletes some events of weeks that not all tenants keep any longer; answers how many.
CREATE FUNCTION telemetry.expire_events(moment timestamptz, default_days integer, most integer)
    RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    fewest integer := least(
        default_days, (SELECT min(event_days) FROM telemetry.retention));
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
        WHERE end_day <= (moment - make_interval(days => fewest))::date ORDER BY first_day
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

-- Events without a week go by the time at which they came, which is the order of their
-- transactions. Looks at some of them behind a position, and deletes those that their tenants keep
-- no longer. Answers where it stopped; NULL at the end of what is old enough.
CREATE FUNCTION telemetry.sweep_events(
    astray boolean, after_xid xid8, after_id uuid, moment timestamptz, default_days integer,
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
    IF NOT FOUND OR NOT pg_try_advisory_xact_lock(hashtext('telemetry.event retention')) THEN
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
        $sql$, CASE WHEN astray THEN 'event_astray' ELSE 'event_undated' END)
        INTO next_xid, next_id, deleted, came
        USING after_xid, after_id, done.done_xid, done.done_id, moment, default_days, most;
    deleted := coalesce(deleted, 0);
    IF came >= moment - make_interval(days => fewest) THEN
        next_xid := NULL;
        next_id := NULL;
    END IF;
END $$;

REVOKE ALL ON FUNCTION telemetry.drop_events, telemetry.expire_events, telemetry.sweep_events
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION telemetry.drop_events, telemetry.expire_events, telemetry.sweep_events
    TO evergreen_telemetry;
