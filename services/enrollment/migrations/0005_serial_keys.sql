-- outside a transaction
-- The keys of what is registered, while devices go on enrolling. Of two spellings of one serial number
-- the device that is in use has the key, or the newer one; the other is kept apart, and shown.
SET evergreen.scope = '*';
DROP INDEX CONCURRENTLY IF EXISTS enrollment.device_by_serial_key;
CREATE INDEX CONCURRENTLY IF NOT EXISTS device_by_serial_key ON enrollment.device (tenant_id, serial_key);
CALL enrollment.fill_serial_keys();
WITH spelled AS (
    SELECT id, row_number() OVER (
        PARTITION BY tenant_id, serial_key
        ORDER BY status IN ('active', 'prepared') DESC, created_at DESC, id DESC) AS place
    FROM enrollment.device
)
UPDATE enrollment.device AS d SET serial_key = d.serial_key || E'\n' || d.id
    FROM spelled WHERE spelled.id = d.id AND spelled.place > 1;

DROP INDEX CONCURRENTLY IF EXISTS enrollment.device_serial_key;
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS device_serial_key ON enrollment.device (serial_key, tenant_id);
DROP INDEX CONCURRENTLY IF EXISTS enrollment.device_by_serial_key;

DROP INDEX CONCURRENTLY IF EXISTS enrollment.token_serial_key;
CREATE INDEX CONCURRENTLY IF NOT EXISTS token_serial_key ON enrollment.token_serial (token_id, serial_key);

-- Machines without a serial number are found by what they say of their hardware.
DROP INDEX CONCURRENTLY IF EXISTS enrollment.device_unnamed;
CREATE INDEX CONCURRENTLY IF NOT EXISTS device_unnamed ON enrollment.device (tenant_id, fingerprint)
    WHERE reported_serial IS NOT NULL;
