-- outside a transaction
-- Devices of which something is left, among all that were deleted. What was interrupted before is of no use.
DROP INDEX CONCURRENTLY IF EXISTS telemetry.deleted_device_to_erase;

CREATE INDEX CONCURRENTLY IF NOT EXISTS deleted_device_to_erase ON telemetry.deleted_device (device_id)
    WHERE erased_at IS NULL;
