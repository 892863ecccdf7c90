-- What all services' schemas share. Every table that holds a tenant's rows carries the policy
--   USING ((SELECT evergreen.system_scope()) OR tenant_id = ANY ((SELECT evergreen.tenant_scope())::uuid[]))
-- so that a transaction sees the tenants it was bound to, and a transaction that was bound to
-- nothing sees nothing. The sub-selects make PostgreSQL evaluate the scope once per statement.

CREATE FUNCTION evergreen.system_scope() RETURNS boolean
    LANGUAGE sql STABLE
    RETURN current_setting('evergreen.scope', true) IS NOT DISTINCT FROM '*';

CREATE FUNCTION evergreen.tenant_scope() RETURNS uuid[]
    LANGUAGE sql STABLE
    RETURN string_to_array(
        NULLIF(NULLIF(current_setting('evergreen.scope', true), '*'), ''), ',')::uuid[];

-- Binds a table's rows to the tenant scope of the transaction.
CREATE PROCEDURE evergreen.isolate(target regclass, tenant_column name DEFAULT 'tenant_id')
    LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', target);
    EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', target);
    EXECUTE format(
        'CREATE POLICY tenant_scope ON %s USING ((SELECT evergreen.system_scope())'
        ' OR %I = ANY ((SELECT evergreen.tenant_scope())::uuid[]))', target, tenant_column);
END $$;

-- The transactional outbox of a service. Rows stay after they were published, for as long as
-- the stream keeps messages, so that a lost stream can be published again.
CREATE PROCEDURE evergreen.add_outbox(context name)
    LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format(
        'CREATE TABLE %I.outbox ('
        ' id uuid PRIMARY KEY,'
        ' subject text NOT NULL,'
        ' payload text NOT NULL,'
        ' created_at timestamptz NOT NULL DEFAULT now(),'
        ' published_at timestamptz)', context);
    EXECUTE format(
        'CREATE INDEX outbox_unpublished ON %I.outbox (id) WHERE published_at IS NULL', context);
    EXECUTE format(
        'CREATE INDEX outbox_published ON %I.outbox (published_at)'
        ' WHERE published_at IS NOT NULL', context);
    EXECUTE format(
        'CREATE TABLE %I.outbox_stream ('
        ' only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),'
        ' incarnation text NOT NULL)', context);
    EXECUTE format(
        'GRANT SELECT, INSERT, UPDATE (published_at), DELETE ON %I.outbox TO %I',
        context, 'evergreen_' || context);
    EXECUTE format(
        'GRANT SELECT, INSERT, UPDATE ON %I.outbox_stream TO %I',
        context, 'evergreen_' || context);
END $$;

-- The devices whose tokens a service refuses, as it last heard from the registry. Kept so that
-- a service knows them from its first moment, whoever else is down.
CREATE PROCEDURE evergreen.add_device_access(context name)
    LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format(
        'CREATE TABLE %I.device_access ('
        ' device_id uuid PRIMARY KEY,'
        ' locked_out boolean NOT NULL,'
        ' min_token_version integer NOT NULL)', context);
    EXECUTE format(
        'CREATE TABLE %I.device_access_cursor ('
        ' only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),'
        ' cursor text NOT NULL)', context);
    EXECUTE format(
        'GRANT SELECT, INSERT, UPDATE ON %1$I.device_access, %1$I.device_access_cursor TO %2$I',
        context, 'evergreen_' || context);
END $$;
