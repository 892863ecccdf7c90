-- outside a transaction
-- An organisation's devices are listed by their ids.
DROP INDEX CONCURRENTLY IF EXISTS policy.devices_by_tenant;
CREATE INDEX CONCURRENTLY IF NOT EXISTS devices_by_tenant ON policy.devices (tenant_id, device_id);
