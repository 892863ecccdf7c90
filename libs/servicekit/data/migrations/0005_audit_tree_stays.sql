-- Deletes some rows of a tenant from the tables of a schema that have a column `tenant_id`; answers how
-- many. The catalogue says which tables there are, so that no new one is forgotten. Tables with partitions
-- are their context's own business, and so are these: what is known of the deletion, tombstones, and the
-- audit log with its tree.
CREATE OR REPLACE FUNCTION evergreen.erase_rows(context name, tenant uuid, most integer) RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target name;
    waits name;
    gone bigint;
    total bigint := 0;
BEGIN
    FOR target IN
        SELECT c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        JOIN pg_attribute AS a ON a.attrelid = c.oid
        WHERE n.nspname = context AND c.relkind = 'r' AND NOT c.relispartition
        AND a.attname = 'tenant_id' AND NOT a.attisdropped
        AND c.relname NOT IN ('closed_tenant', 'tenant_erasure') AND c.relname NOT LIKE '%tombstone'
        AND NOT (context = 'audit' AND (c.relname IN ('entry', 'chain_head') OR c.relname LIKE 'tree\_%'))
        -- Newer tables refer to older ones.
        ORDER BY c.oid DESC
    LOOP
        EXIT WHEN total >= most;
        BEGIN
            EXECUTE format(
                'DELETE FROM %1$I.%2$I WHERE ctid = ANY (ARRAY('
                'SELECT ctid FROM %1$I.%2$I WHERE tenant_id = $1 LIMIT $2))', context, target)
                USING tenant, most - total;
            GET DIAGNOSTICS gone = ROW_COUNT;
            total := total + gone;
        EXCEPTION WHEN foreign_key_violation THEN
            -- Rows of another table refer to these; theirs go first.
            waits := target;
        END;
    END LOOP;
    IF total = 0 AND waits IS NOT NULL THEN
        RAISE EXCEPTION 'rows of %.% are referred to by rows that stay', context, waits;
    END IF;
    RETURN total;
END $$;
REVOKE ALL ON FUNCTION evergreen.erase_rows FROM PUBLIC;
