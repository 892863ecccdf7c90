-- outside a transaction
-- The index of receipt for the partitions that are there. What was interrupted before is of no use.
-- run each answer
SELECT format('DROP INDEX CONCURRENTLY telemetry.%I', c.relname)
FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
WHERE c.relnamespace = 'telemetry'::regnamespace AND c.relname ~ '^event_.*_received$'
AND NOT i.indisvalid;

-- run each answer
SELECT format(
    'CREATE INDEX CONCURRENTLY IF NOT EXISTS %I ON telemetry.%I (tenant_id, received_at, id)',
    c.relname || '_received', c.relname)
FROM pg_catalog.pg_inherits AS p JOIN pg_catalog.pg_class AS c ON c.oid = p.inhrelid
WHERE p.inhparent = 'telemetry.event'::regclass ORDER BY c.relname;
