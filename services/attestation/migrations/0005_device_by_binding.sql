-- outside a transaction
-- PostgreSQL looks for the device of each binding that is deleted: without this, among all devices.
DROP INDEX CONCURRENTLY IF EXISTS attestation.device_by_binding;
CREATE INDEX CONCURRENTLY IF NOT EXISTS device_by_binding ON attestation.device (binding_id)
    WHERE binding_id IS NOT NULL;
