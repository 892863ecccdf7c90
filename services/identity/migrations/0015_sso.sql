-- Providers of single sign-on (OpenID Connect). What they have in common with directories stands in
-- identity.source and what hangs on it.
CREATE TABLE identity.sso_provider (
    id uuid PRIMARY KEY REFERENCES identity.source (id) ON DELETE CASCADE,
    tenant_id uuid NOT NULL,
    issuer text NOT NULL,
    client_id text NOT NULL,
    sealed_secrets bytea NOT NULL,
    ca_pem text NOT NULL,
    scopes text[] NOT NULL,
    groups_claim text NOT NULL,
    email_claim text NOT NULL,
    hosted_domain text NOT NULL,
    just_in_time boolean NOT NULL,
    -- Whether everybody sees its button; else only who comes by its organisation.
    login_button boolean NOT NULL,
    -- Whether it answers for a second factor, so that none of ours is asked for.
    trusts_mfa boolean NOT NULL
);
CREATE INDEX sso_provider_by_tenant ON identity.sso_provider (tenant_id, id);
CALL evergreen.isolate('identity.sso_provider');

-- What works once: the states of logins that came back, and logout tokens, by keyed hashes. A state is
-- made in the browser's sealed cookie, so that nobody fills this table by beginning logins.
CREATE TABLE identity.sso_used (
    hash bytea PRIMARY KEY,
    expires_at timestamptz NOT NULL
);
CREATE INDEX sso_used_expiry ON identity.sso_used (expires_at);

-- With which source a session was opened, and what that calls the session: so it can be ended from there.
ALTER TABLE identity.session
    ADD COLUMN source_id uuid,
    ADD COLUMN external_sid text;
ALTER TABLE identity.login_challenge
    ADD COLUMN source_id uuid,
    ADD COLUMN external_sid text NOT NULL DEFAULT '';
-- A moment: no session has a source yet.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX session_by_source ON identity.session (source_id, external_sid) WHERE source_id IS NOT NULL;

GRANT SELECT, INSERT, UPDATE, DELETE ON identity.sso_provider, identity.sso_used TO evergreen_identity;
