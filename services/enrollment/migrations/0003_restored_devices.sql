-- outside a transaction
-- Devices that came back: what the feed of restrictions tells of beside `device_restrictions`.
DROP INDEX CONCURRENTLY IF EXISTS enrollment.device_restored;
CREATE INDEX CONCURRENTLY IF NOT EXISTS device_restored ON enrollment.device (changed_xid, id)
    WHERE restored_at IS NOT NULL;
