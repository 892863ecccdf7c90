-- Passkeys (WebAuthn). What is kept of them opens nothing.
CREATE TABLE identity.passkey (
    id uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES identity.account (id) ON DELETE CASCADE,
    -- What its device calls it.
    credential_id bytea NOT NULL CONSTRAINT passkey_taken UNIQUE,
    -- The host that it is for: browsers give it to no other one.
    site text NOT NULL,
    public_key bytea NOT NULL,
    sign_count bigint NOT NULL,
    backed_up boolean NOT NULL,
    aaguid uuid NOT NULL,
    name text NOT NULL,
    created_at timestamptz NOT NULL,
    last_used_at timestamptz
);
CREATE INDEX passkey_by_account ON identity.passkey (account_id);

-- Challenges that were answered, until they expire: each is answered once.
CREATE TABLE identity.spent_challenge (
    hash bytea PRIMARY KEY,
    expires_at timestamptz NOT NULL
);
CREATE INDEX spent_challenge_expiry ON identity.spent_challenge (expires_at);

GRANT SELECT, INSERT, UPDATE, DELETE ON identity.passkey, identity.spent_challenge
    TO evergreen_identity;
