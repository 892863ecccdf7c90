-- Tenants that are archived or deleted, as a service has heard of them: it refuses their devices from its
-- first moment, whoever else is down, and knows after a restart how far it was with their rows. The row of
-- a deleted tenant stays; it is the service's tombstone.
CREATE PROCEDURE evergreen.add_closed_tenants(context name)
    LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format(
        'CREATE TABLE %I.closed_tenant ('
        ' tenant_id uuid PRIMARY KEY,'
        ' status text NOT NULL CHECK (status IN (''archived'', ''deleting'', ''deleted'')),'
        ' heard_at timestamptz NOT NULL DEFAULT now(),'
        ' erased_rows bigint NOT NULL DEFAULT 0,'
        -- When nothing was left to do for this status.
        ' settled_at timestamptz)', context);
    EXECUTE format('CALL evergreen.isolate(%L)', format('%I.closed_tenant', context));
    EXECUTE format(
        'GRANT SELECT, INSERT, UPDATE, DELETE ON %I.closed_tenant TO %I',
        context, 'evergreen_' || context);
    -- As the owner, for the services have no right to delete most of their rows; and only for a tenant
    -- that is being deleted. The transaction has to be bound to it.
    EXECUTE format($sql$
        CREATE FUNCTION %1$I.erase_tenant(tenant uuid, most integer) RETURNS bigint
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
        BEGIN
            PERFORM FROM %1$I.closed_tenant WHERE tenant_id = tenant AND status <> 'archived';
            IF NOT FOUND THEN
                RAISE EXCEPTION 'the tenant %% is not being deleted', tenant
                    USING ERRCODE = 'insufficient_privilege';
            END IF;
            RETURN evergreen.erase_rows(%1$L, tenant, most);
        END $body$ $sql$, context);
    EXECUTE format('REVOKE ALL ON FUNCTION %I.erase_tenant FROM PUBLIC', context);
    EXECUTE format(
        'GRANT EXECUTE ON FUNCTION %I.erase_tenant TO %I', context, 'evergreen_' || context);
END $$;

-- Deletes some rows of a tenant from the tables of a schema that have a column `tenant_id`; answers how
-- many. The catalogue says which tables there are, so that no new one is forgotten. Tables with partitions
-- are their context's own business, and so are these: what is known of the deletion, tombstones, and the
-- audit log.
CREATE FUNCTION evergreen.erase_rows(context name, tenant uuid, most integer) RETURNS bigint
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
        AND NOT (context = 'audit' AND c.relname IN ('entry', 'chain_head'))
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

-- As before, with the device's organisation; NULL where a release wrote the row that did not note it.
CREATE OR REPLACE PROCEDURE evergreen.add_device_access(context name)
    LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format(
        'CREATE TABLE %I.device_access ('
        ' device_id uuid PRIMARY KEY,'
        ' locked_out boolean NOT NULL,'
        ' min_token_version integer NOT NULL,'
        ' tenant_id uuid)', context);
    EXECUTE format(
        'CREATE TABLE %I.device_access_cursor ('
        ' only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),'
        ' cursor text NOT NULL)', context);
    EXECUTE format(
        'GRANT SELECT, INSERT, UPDATE ON %1$I.device_access, %1$I.device_access_cursor TO %2$I',
        context, 'evergreen_' || context);
    EXECUTE format('CALL evergreen.isolate(%L)', format('%I.device_access', context));
END $$;

DO $$
DECLARE
    context name;
BEGIN
    FOR context IN
        SELECT nspname FROM pg_namespace
        WHERE to_regrole('evergreen_' || nspname) IS NOT NULL ORDER BY nspname
    LOOP
        CALL evergreen.add_closed_tenants(context);
        IF to_regclass(format('%I.device_access', context)) IS NOT NULL THEN
            EXECUTE format('ALTER TABLE %I.device_access ADD COLUMN tenant_id uuid', context);
            EXECUTE format('CALL evergreen.isolate(%L)', format('%I.device_access', context));
            IF context = 'attestation' THEN
                -- It knows no devices: it reads the feed from its beginning once more. The others fill
                -- the column from what they know.
                UPDATE attestation.device_access_cursor SET cursor = '';
            END IF;
        END IF;
    END LOOP;
END $$;
