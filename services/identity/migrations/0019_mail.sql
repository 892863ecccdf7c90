-- Mails that wait for the operator's mail server, and for a week those that were sent or given up. The
-- secret of a link is sealed, and goes as soon as the mail has ended.
CREATE TABLE identity.mail (
    -- The left half of its Message-ID, the same at each attempt.
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    -- What happened: the same thing makes one mail, however often it is told.
    key text NOT NULL,
    kind text NOT NULL,
    -- Who causes it: each within bounds of its own.
    budget text NOT NULL CHECK (budget IN ('asked', 'written', 'told', 'notice')),
    address text NOT NULL,
    -- `en` or `de`; NULL for the organisation's.
    language text,
    details jsonb NOT NULL,
    sealed_secrets bytea,
    -- By it the link's account is known: a link that has ended is not sent.
    link_hash bytea,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    next_at timestamptz NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    -- How often the server got it whole, and did not answer.
    unanswered integer NOT NULL DEFAULT 0,
    -- Until then a process has it.
    taken_until timestamptz,
    last_error text,
    ended_at timestamptz,
    outcome text CHECK (outcome IN ('sent', 'refused', 'expired', 'void')),
    CONSTRAINT mail_once UNIQUE (tenant_id, key, address),
    CHECK ((ended_at IS NULL) = (outcome IS NULL)),
    CHECK (ended_at IS NULL OR sealed_secrets IS NULL)
);
CREATE INDEX mail_waiting ON identity.mail (tenant_id, next_at) WHERE ended_at IS NULL;
CREATE INDEX mail_by_time ON identity.mail (tenant_id, created_at);
CREATE INDEX mail_expiry ON identity.mail (expires_at) WHERE ended_at IS NULL;
CREATE INDEX mail_ended ON identity.mail (ended_at) WHERE ended_at IS NOT NULL;
CALL evergreen.isolate('identity.mail');

-- How the mail server was last found.
CREATE TABLE identity.mail_server (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    last_success_at timestamptz,
    failing_since timestamptz,
    last_error text,
    last_error_at timestamptz
);

-- Links by which people set a new password in place of one that they forgot. The old one counts until
-- then: whoever asks for a link changes nothing.
CREATE TABLE identity.password_reset (
    account_id uuid PRIMARY KEY REFERENCES identity.account (id) ON DELETE CASCADE,
    hash bytea NOT NULL UNIQUE,
    -- What the account was when the link was made; the link ends when it is another.
    email text NOT NULL,
    password_mark bytea NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX password_reset_expiry ON identity.password_reset (expires_at);

-- How an organisation's people are written to; NULL for what the tenant above says.
ALTER TABLE identity.tenant
    ADD COLUMN language text CHECK (language IN ('en', 'de')),
    ADD COLUMN time_zone text;

GRANT SELECT, INSERT, UPDATE, DELETE ON identity.mail, identity.password_reset TO evergreen_identity;
GRANT SELECT, INSERT, UPDATE ON identity.mail_server TO evergreen_identity;
