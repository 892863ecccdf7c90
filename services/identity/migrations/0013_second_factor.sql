-- Keys of authenticator apps: one that counts, and one that waits for its first code.
CREATE TABLE identity.totp (
    id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES identity.account (id) ON DELETE CASCADE,
    sealed_secrets bytea NOT NULL,
    created_at timestamptz NOT NULL,
    confirmed_at timestamptz,
    -- The 30 seconds whose code was taken last; no code of these or of earlier ones is taken again.
    last_step bigint NOT NULL
);
CREATE UNIQUE INDEX totp_one_counts ON identity.totp (account_id) WHERE confirmed_at IS NOT NULL;
CREATE UNIQUE INDEX totp_one_waits ON identity.totp (account_id) WHERE confirmed_at IS NULL;

-- Each opens its account once, beside the password. Of the code a digest is kept, and sealed: its 50 bits
-- could be found out from the digest alone.
CREATE TABLE identity.recovery_code (
    id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES identity.account (id) ON DELETE CASCADE,
    sealed_secrets bytea NOT NULL,
    used_at timestamptz
);
CREATE INDEX recovery_code_by_account ON identity.recovery_code (account_id);

-- Logins of browsers whose password was right, and that wait for the second factor.
CREATE TABLE identity.login_challenge (
    id_hash bytea PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES identity.account (id) ON DELETE CASCADE,
    session_id uuid NOT NULL,
    methods text[] NOT NULL,
    -- Stands for the password that was right, which may be another one by now.
    mark bytea NOT NULL,
    tries integer NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX login_challenge_expiry ON identity.login_challenge (expires_at);
CREATE INDEX login_challenge_by_account ON identity.login_challenge (account_id);

-- When, and how, somebody logged in. Of sessions of the release before neither is known.
ALTER TABLE identity.session
    ADD COLUMN authenticated_at timestamptz,
    ADD COLUMN methods text[] NOT NULL DEFAULT '{}';

-- How people of a tenant, and of all below it, log in.
CREATE TABLE identity.sign_in_policy (
    tenant_id uuid PRIMARY KEY REFERENCES identity.tenant (id) ON DELETE CASCADE,
    mfa text NOT NULL CHECK (mfa IN ('off', 'owners', 'admins', 'all')),
    mfa_required_from timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
CALL evergreen.isolate('identity.sign_in_policy');

-- What a tenant and all above it ask for: also of those who see no tenant but their own.
CREATE FUNCTION identity.sign_in_policies(tenant uuid) RETURNS SETOF identity.sign_in_policy
    LANGUAGE plpgsql AS $$
DECLARE
    scope text := coalesce(current_setting('evergreen.scope', true), '');
BEGIN
    PERFORM set_config('evergreen.scope', '*', true);
    RETURN QUERY
        WITH RECURSIVE up AS (
            SELECT t.id, t.parent_id FROM identity.tenant t WHERE t.id = tenant
            UNION ALL
            SELECT t.id, t.parent_id FROM identity.tenant t JOIN up ON t.id = up.parent_id
        )
        SELECT p.* FROM up JOIN identity.sign_in_policy p ON p.tenant_id = up.id;
    PERFORM set_config('evergreen.scope', scope, true);
END $$;

GRANT SELECT, INSERT, UPDATE, DELETE ON identity.totp, identity.recovery_code,
    identity.login_challenge, identity.sign_in_policy TO evergreen_identity;
