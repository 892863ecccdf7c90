-- Who logs in with a password or a passkey of here, where people come from a directory or provider: all, or
-- Owners only.
ALTER TABLE identity.sign_in_policy ADD COLUMN local_login text NOT NULL DEFAULT 'all'
    CHECK (local_login IN ('all', 'owners-only'));

-- Whether only Owners of a tenant log in with what they have here: the tenant, or one above, says so, a
-- directory or provider in use lets its people in, and an Owner with a password is left for the day when that
-- does not answer. Also for those who see no tenant but their own.
CREATE FUNCTION identity.only_owners_log_in_here(tenant uuid) RETURNS boolean
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
        AND EXISTS (SELECT FROM up JOIN identity.source s ON s.tenant_id = up.id
            WHERE s.enabled AND s.kind IN ('directory', 'sso') AND (s.tenant_id = tenant
            OR EXISTS (SELECT FROM identity.role_mapping m WHERE m.source_id = s.id AND m.tenant_id = tenant)
            OR NOT EXISTS (SELECT FROM identity.role_mapping m WHERE m.source_id = s.id)))
        AND EXISTS (SELECT FROM identity.account a WHERE a.tenant_id = tenant AND a.role = 'Owner'
            AND a.status = 'active' AND a.origin = 'local' AND a.password_hash IS NOT NULL)
    INTO found;
    PERFORM set_config('evergreen.scope', scope, true);
    RETURN found;
END $$;
