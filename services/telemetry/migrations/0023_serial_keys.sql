-- outside a transaction
SET evergreen.scope = '*';
CALL telemetry.fill_serial_keys();
DROP INDEX CONCURRENTLY IF EXISTS telemetry.device_text_serials;
CREATE INDEX CONCURRENTLY IF NOT EXISTS device_text_serials ON telemetry.device_text (serial_key);
-- The few that are marked.
DROP INDEX CONCURRENTLY IF EXISTS telemetry.device_cloned;
CREATE INDEX CONCURRENTLY IF NOT EXISTS device_cloned ON telemetry.device (tenant_id, name, id)
    WHERE clone_suspected_at IS NOT NULL;
