-- API tokens, and service accounts that have some. A token itself is not kept: it is a signed JWT, and
-- `id` is what it calls itself.
CREATE TABLE identity.service_account (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL REFERENCES identity.tenant (id),
    name text NOT NULL,
    role text NOT NULL CHECK (role IN ('Owner', 'Admin', 'Auditor')),
    created_at timestamptz NOT NULL,
    created_by text NOT NULL,
    -- What stays of one that was deleted, so that the audit log can be read.
    deleted_at timestamptz,
    deleted_by text
);
CREATE UNIQUE INDEX service_account_name_taken ON identity.service_account (tenant_id, name)
    WHERE deleted_at IS NULL;
CREATE INDEX service_account_by_tenant ON identity.service_account (tenant_id, id);
CALL evergreen.isolate('identity.service_account');

CREATE TABLE identity.api_token (
    id uuid PRIMARY KEY,
    -- Whose rows it sees: these, and those of all tenants below.
    tenant_id uuid NOT NULL REFERENCES identity.tenant (id),
    -- Whom it acts for: one of the two, as long as that is there.
    account_id uuid,
    service_account_id uuid,
    held_by text NOT NULL,
    name text NOT NULL,
    role text NOT NULL CHECK (role IN ('Owner', 'Admin', 'Auditor')),
    scopes text[] NOT NULL,
    created_at timestamptz NOT NULL,
    created_by text NOT NULL,
    expires_at timestamptz NOT NULL,
    -- Until when it works: `expires_at`, or earlier where somebody ended it.
    ends_at timestamptz NOT NULL,
    ended_because text CHECK (ended_because IN ('revoked', 'rotated', 'holder')),
    replaced_by uuid,
    -- What was told of its end in the log.
    told text CHECK (told IN ('soon', 'expired')),
    last_used_at timestamptz,
    last_used_from text,
    changed_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    CHECK (ends_at <= expires_at)
);
CREATE INDEX api_token_by_tenant ON identity.api_token (tenant_id, id);
CREATE INDEX api_token_by_account ON identity.api_token (account_id);
CREATE INDEX api_token_by_service_account ON identity.api_token (service_account_id);
CREATE INDEX api_token_changes ON identity.api_token (changed_xid, id);
CREATE INDEX api_token_expiry ON identity.api_token (expires_at);
CALL evergreen.isolate('identity.api_token');

-- A token ends with whom it acts for, and when that may no longer do what it may: by whatever release
-- that is changed. It says in words who that is, also where its readers do not see the account.
CREATE FUNCTION identity.role_rank(role text) RETURNS integer
    LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE role WHEN 'Owner' THEN 3 WHEN 'Admin' THEN 2 ELSE 1 END
$$;

CREATE FUNCTION identity.end_api_tokens() RETURNS trigger
    LANGUAGE plpgsql AS $$
DECLARE
    scope text := coalesce(current_setting('evergreen.scope', true), '');
    role_now text;
    held_by_now text;
    all_end boolean := true;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        role_now := NEW.role;
        all_end := NEW.tenant_id <> OLD.tenant_id;
        IF TG_TABLE_NAME = 'account' THEN
            all_end := all_end OR NEW.status <> 'active';
            held_by_now := NEW.email;
        ELSE
            all_end := all_end OR NEW.deleted_at IS NOT NULL;
            held_by_now := NEW.name;
        END IF;
    END IF;
    PERFORM set_config('evergreen.scope', '*', true);
    UPDATE identity.api_token SET ends_at = now(), ended_because = 'holder',
        changed_xid = pg_current_xact_id()
        WHERE (account_id = OLD.id OR service_account_id = OLD.id) AND ends_at > now()
        AND (all_end OR identity.role_rank(role) > identity.role_rank(role_now));
    IF held_by_now IS NOT NULL THEN
        UPDATE identity.api_token SET held_by = held_by_now
            WHERE (account_id = OLD.id OR service_account_id = OLD.id) AND held_by <> held_by_now;
    END IF;
    PERFORM set_config('evergreen.scope', scope, true);
    RETURN NULL;
END $$;
CREATE TRIGGER account_api_tokens AFTER UPDATE OF status, role, tenant_id, email ON identity.account
    FOR EACH ROW WHEN ((OLD.status, OLD.role, OLD.tenant_id, OLD.email)
        IS DISTINCT FROM (NEW.status, NEW.role, NEW.tenant_id, NEW.email))
    EXECUTE FUNCTION identity.end_api_tokens();
CREATE TRIGGER account_api_tokens_end AFTER DELETE ON identity.account
    FOR EACH ROW EXECUTE FUNCTION identity.end_api_tokens();
CREATE TRIGGER service_account_api_tokens AFTER UPDATE ON identity.service_account
    FOR EACH ROW EXECUTE FUNCTION identity.end_api_tokens();
CREATE TRIGGER service_account_api_tokens_end AFTER DELETE ON identity.service_account
    FOR EACH ROW EXECUTE FUNCTION identity.end_api_tokens();

-- Keys of a third purpose, in a table of a few rows. Every release reads the keys of its own purposes by
-- name.
-- squawk-ignore ban-drop-constraint
ALTER TABLE identity.signing_key DROP CONSTRAINT signing_key_purpose_check;
-- squawk-ignore constraint-missing-not-valid
ALTER TABLE identity.signing_key ADD CONSTRAINT signing_key_purpose_check
    CHECK (purpose IN ('users', 'devices', 'tokens'));

GRANT SELECT, INSERT, UPDATE, DELETE ON identity.api_token, identity.service_account
    TO evergreen_identity;
