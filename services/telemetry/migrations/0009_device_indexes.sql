-- outside a transaction
-- What a large fleet takes minutes for, while devices go on reporting.
SET evergreen.scope = '*';
CALL telemetry.fill_device_text();

-- The extension may have been there before, in another schema.
SELECT set_config('search_path', format('telemetry, %I, pg_temp', n.nspname), false)
FROM pg_catalog.pg_extension AS e JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
WHERE e.extname = 'pg_trgm';
DROP INDEX CONCURRENTLY IF EXISTS telemetry.device_text_trigrams;
CREATE INDEX CONCURRENTLY IF NOT EXISTS device_text_trigrams
    ON telemetry.device_text USING gin (content gin_trgm_ops, (device_id::text) gin_trgm_ops);
ANALYZE telemetry.device_text;

-- The few that are retired, and those of one tenant that are not well, in the order of lists; the few
-- that have not called for long.
DROP INDEX CONCURRENTLY IF EXISTS telemetry.device_retired;
CREATE INDEX CONCURRENTLY IF NOT EXISTS device_retired
    ON telemetry.device (name, id) WHERE registry_status = 'decommissioned';
DROP INDEX CONCURRENTLY IF EXISTS telemetry.device_tenant_retired;
CREATE INDEX CONCURRENTLY IF NOT EXISTS device_tenant_retired
    ON telemetry.device (tenant_id, name, id) WHERE registry_status = 'decommissioned';
DROP INDEX CONCURRENTLY IF EXISTS telemetry.device_tenant_unwell;
CREATE INDEX CONCURRENTLY IF NOT EXISTS device_tenant_unwell
    ON telemetry.device (tenant_id, health, name, id) WHERE health <> 'healthy';
DROP INDEX CONCURRENTLY IF EXISTS telemetry.device_by_day;
CREATE INDEX CONCURRENTLY IF NOT EXISTS device_by_day ON telemetry.device (seen_day, tenant_id);
