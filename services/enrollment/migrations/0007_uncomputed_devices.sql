-- outside a transaction
-- Devices whose groups are to be computed: those that the last release's services add or change, and those
-- that a restore brought.
DROP INDEX CONCURRENTLY IF EXISTS enrollment.device_uncomputed;
CREATE INDEX CONCURRENTLY IF NOT EXISTS device_uncomputed ON enrollment.device (tenant_id, id)
    WHERE groups_computed_at IS NULL;
DROP INDEX CONCURRENTLY IF EXISTS enrollment.device_by_asset_tag;
CREATE INDEX CONCURRENTLY IF NOT EXISTS device_by_asset_tag ON enrollment.device (tenant_id, asset_tag)
    WHERE asset_tag <> '';
