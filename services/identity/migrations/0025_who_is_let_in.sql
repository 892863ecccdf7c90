-- Whom an Owner has taken out of a source: no source takes the account over by its address until somebody
-- has accepted an invitation to it.
ALTER TABLE identity.account ADD COLUMN kept_from_sources boolean NOT NULL DEFAULT false;

-- Whether a tenant's people get in without a password of here: a directory in use, which addresses lead to,
-- maps groups to the tenant, or a provider in use lets them in; and an Owner with a password is left for the
-- day when that does not answer. For a transaction that sees all tenants.
CREATE FUNCTION identity.is_open_elsewhere(tenant uuid) RETURNS boolean
    LANGUAGE sql STABLE AS $$
    WITH RECURSIVE up AS (
        SELECT t.id, t.parent_id FROM identity.tenant t WHERE t.id = tenant
        UNION ALL
        SELECT t.id, t.parent_id FROM identity.tenant t JOIN up ON t.id = up.parent_id
    )
    SELECT
        EXISTS (SELECT FROM identity.account a WHERE a.tenant_id = tenant AND a.role = 'Owner'
            AND a.status = 'active' AND a.origin = 'local' AND a.password_hash IS NOT NULL)
        AND EXISTS (SELECT FROM up JOIN identity.source s ON s.tenant_id = up.id
            LEFT JOIN LATERAL (SELECT bool_or(m.tenant_id = tenant) AS here
                FROM identity.role_mapping m WHERE m.source_id = s.id) mapped ON true
            WHERE s.enabled AND CASE s.kind
                -- It lets in nobody whom no group gives a role, and is asked for nobody else's address.
                WHEN 'directory' THEN mapped.here
                    AND (EXISTS (SELECT FROM identity.email_domain d WHERE d.source_id = s.id)
                    OR EXISTS (SELECT FROM identity.external_identity e WHERE e.source_id = s.id))
                -- It also lets in whom it recognises as somebody who has an account.
                WHEN 'sso' THEN s.tenant_id = tenant OR coalesce(mapped.here, true)
                ELSE false END)
$$;

-- As in migration 22, but for directories that let nobody of the tenant in.
CREATE OR REPLACE FUNCTION identity.only_owners_log_in_here(tenant uuid) RETURNS boolean
    LANGUAGE plpgsql AS $$
DECLARE
    scope text := coalesce(current_setting('evergreen.scope', true), '');
    found boolean;
BEGIN
    PERFORM set_config('evergreen.scope', '*', true);
    WITH RECURSIVE up AS (
        SELECT t.id, t.parent_id FROM identity.tenant t WHERE t.id = tenant
        UNION ALL
        SELECT t.id, t.parent_id FROM identity.tenant t JOIN up ON t.id = up.parent_id
    )
    SELECT
        EXISTS (SELECT FROM up JOIN identity.sign_in_policy p ON p.tenant_id = up.id
            WHERE p.local_login = 'owners-only')
        AND identity.is_open_elsewhere(tenant)
    INTO found;
    PERFORM set_config('evergreen.scope', scope, true);
    RETURN found;
END $$;

-- How many active Admins and Auditors of a tenant, and of all below, get in by nothing but what they have
-- here, where their tenant's people get in elsewhere: `owners-only` shuts them out.
CREATE FUNCTION identity.only_known_here(tenant uuid) RETURNS integer
    LANGUAGE plpgsql AS $$
DECLARE
    scope text := coalesce(current_setting('evergreen.scope', true), '');
    found integer;
BEGIN
    PERFORM set_config('evergreen.scope', '*', true);
    WITH RECURSIVE down AS (
        SELECT t.id FROM identity.tenant t WHERE t.id = tenant
        UNION ALL
        SELECT t.id FROM identity.tenant t JOIN down ON t.parent_id = down.id
    ), here AS MATERIALIZED (
        SELECT a.tenant_id, count(*) AS people FROM down JOIN identity.account a ON a.tenant_id = down.id
        WHERE a.role <> 'Owner' AND a.status = 'active' AND a.origin = 'local'
        AND NOT EXISTS (SELECT FROM identity.external_identity e JOIN identity.source s
            ON s.id = e.source_id AND s.enabled WHERE e.account_id = a.id)
        GROUP BY a.tenant_id
    )
    SELECT coalesce(sum(h.people), 0) FROM here h WHERE identity.is_open_elsewhere(h.tenant_id) INTO found;
    PERFORM set_config('evergreen.scope', scope, true);
    RETURN found;
END $$;
