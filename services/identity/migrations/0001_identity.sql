CREATE TABLE identity.tenant (
    id uuid PRIMARY KEY,
    parent_id uuid REFERENCES identity.tenant (id),
    kind text NOT NULL CHECK (kind IN ('root', 'reseller', 'org')),
    name text NOT NULL,
    code text NOT NULL CONSTRAINT tenant_code_taken UNIQUE,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    changed_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    CHECK ((kind = 'root') = (parent_id IS NULL))
);
CREATE UNIQUE INDEX tenant_one_root ON identity.tenant (kind) WHERE kind = 'root';
CREATE INDEX tenant_changes ON identity.tenant (changed_xid, id);
CALL evergreen.isolate('identity.tenant', 'id');

CREATE TABLE identity.account (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL REFERENCES identity.tenant (id),
    email text NOT NULL CONSTRAINT account_email_taken UNIQUE CHECK (email = lower(email)),
    role text NOT NULL CHECK (role IN ('Owner', 'Admin', 'Auditor')),
    status text NOT NULL CHECK (status IN ('active', 'invited', 'disabled')),
    password_hash text,
    invitation_hash bytea UNIQUE,
    invitation_expires_at timestamptz,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE INDEX account_by_tenant ON identity.account (tenant_id, id);
CALL evergreen.isolate('identity.account');

-- A session is a family of refresh tokens, of which only the newest works.
CREATE TABLE identity.session (
    id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES identity.account (id),
    tenant_id uuid NOT NULL REFERENCES identity.tenant (id),
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    ended_at timestamptz,
    changed_xid xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX session_open ON identity.session (account_id) WHERE ended_at IS NULL;
CREATE INDEX session_ended ON identity.session (changed_xid, id) WHERE ended_at IS NOT NULL;
CREATE INDEX session_expiry ON identity.session (expires_at);
CALL evergreen.isolate('identity.session');

CREATE TABLE identity.refresh_token (
    hash bytea PRIMARY KEY,
    session_id uuid NOT NULL REFERENCES identity.session (id) ON DELETE CASCADE,
    issued_at timestamptz NOT NULL,
    used_at timestamptz
);
CREATE INDEX refresh_token_by_session ON identity.refresh_token (session_id);

CREATE TABLE identity.signing_key (
    key_id text PRIMARY KEY,
    purpose text NOT NULL CHECK (purpose IN ('users', 'devices')),
    public_key bytea NOT NULL,
    sealed_seed bytea NOT NULL,
    created_at timestamptz NOT NULL
);

CALL evergreen.add_outbox('identity');

GRANT SELECT, INSERT, UPDATE ON identity.tenant, identity.account TO evergreen_identity;
GRANT SELECT, INSERT, UPDATE, DELETE ON identity.session, identity.refresh_token
    TO evergreen_identity;
GRANT SELECT, INSERT ON identity.signing_key TO evergreen_identity;
