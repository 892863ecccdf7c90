-- The second step reads all events, and keeps nobody from writing further ones.
SELECT set_config('evergreen.scope', '*', true);

ALTER TABLE telemetry.event VALIDATE CONSTRAINT event_undated;

-- What devices sent whose clocks are ahead: it will have to move. Rows that the scan cannot see yet
-- are found by their transactions.
CREATE TABLE telemetry.event_to_move AS
    SELECT pg_snapshot_xmin(pg_current_snapshot()) AS seen_before,
        NULL::uuid AS device_id, NULL::text AS event_id;
INSERT INTO telemetry.event_to_move
    SELECT NULL, device_id, event_id FROM telemetry.event
    WHERE telemetry.event_day(event_id) > '-infinity';
