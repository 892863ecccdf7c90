-- How often guesses failed, by a keyed hash of what they are counted by. All replicas count here,
-- and a restart does not forgive. After a crash of PostgreSQL it is empty, which a log of every
-- failure would be too dear to prevent.
CREATE UNLOGGED TABLE identity.guess (
    key bytea PRIMARY KEY,
    failures integer NOT NULL,
    expires_at timestamptz NOT NULL,
    told boolean NOT NULL DEFAULT false
);
CREATE INDEX guess_expiry ON identity.guess (expires_at);

-- Browsers and networks that an account was logged in from lately.
CREATE TABLE identity.familiar (
    account_id uuid NOT NULL REFERENCES identity.account (id) ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('device', 'network')),
    key bytea NOT NULL,
    seen_at timestamptz NOT NULL,
    PRIMARY KEY (account_id, kind, key)
);
CREATE INDEX familiar_key ON identity.familiar (key, kind);
CREATE INDEX familiar_age ON identity.familiar (seen_at);

GRANT SELECT, INSERT, UPDATE, DELETE ON identity.guess, identity.familiar TO evergreen_identity;
