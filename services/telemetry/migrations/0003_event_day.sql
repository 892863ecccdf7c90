-- Events become partitioned by time, in three steps that each hold their locks for a moment only
-- (docs/adr/0019). First: the day by which an event is sorted into a partition. It comes from the
-- event's id alone, so that it is the same whenever and however often the event is sent.
SELECT set_config('evergreen.scope', '*', true);

-- Where partitions by time begin in this installation: before it had events, or tomorrow if it has
-- some. It never changes, for the day that an id tells must not change.
DO $do$
DECLARE
    begins date := date_trunc('week', current_date)::date - 13 * 7;
    nanoseconds text;
    uuid text;
BEGIN
    IF EXISTS (SELECT FROM telemetry.event) THEN
        begins := current_date + 1;
    END IF;
    nanoseconds := extract(epoch FROM begins)::bigint || '000000000';
    uuid := lpad(to_hex(extract(epoch FROM begins)::bigint * 1000), 12, '0');
    uuid := substr(uuid, 1, 8) || '-' || substr(uuid, 9);
    -- The released agent's ids are nanoseconds since 1970. A UUIDv7 begins with milliseconds. Texts
    -- of one length compare like the numbers.
    EXECUTE format($sql$
        CREATE FUNCTION telemetry.event_day(event_id text) RETURNS date
        LANGUAGE sql IMMUTABLE PARALLEL SAFE
        RETURN CASE
            WHEN event_id ~ '^[0-9]{19}$' AND event_id >= %L COLLATE "C"
                THEN date '1970-01-01' + (left(event_id, 10)::bigint / 86400)::integer
            WHEN event_id ~ '^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$'
                AND event_id >= %L COLLATE "C"
                THEN date '1970-01-01' + (('x' || left(event_id, 8) || substr(event_id, 10, 4))
                    ::bit(48)::bigint / 86400000)::integer
            ELSE date '-infinity'
        END $sql$, nanoseconds, uuid);
    EXECUTE format(
        'CREATE FUNCTION telemetry.events_begin() RETURNS date LANGUAGE sql IMMUTABLE'
        ' PARALLEL SAFE RETURN date %L', begins);
END $do$;

-- A constant default: no row is written.
ALTER TABLE telemetry.event ADD COLUMN id_day date NOT NULL DEFAULT '-infinity';
-- Checked in the next step, which lets writers write meanwhile.
ALTER TABLE telemetry.event ADD CONSTRAINT event_undated CHECK (id_day = '-infinity') NOT VALID;
