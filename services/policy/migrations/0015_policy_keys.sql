-- Keys of tenants, and keys that follow one another (docs/adr/0080). The release before signs with the one
-- that `signs`, whatever its state. There is one row until now.
ALTER TABLE policy.signing_keys
    -- squawk-ignore adding-field-with-default
    ADD COLUMN row_id uuid NOT NULL DEFAULT gen_random_uuid(),
    -- Whose devices it is for, with those of the tenants below; NULL for the whole installation's.
    ADD COLUMN tenant_id uuid,
    ADD COLUMN state text NOT NULL DEFAULT 'active'
        CHECK (state IN ('next', 'active', 'retiring', 'retired')),
    ADD COLUMN activated_at timestamptz,
    ADD COLUMN retired_at timestamptz,
    ADD COLUMN compromised_at timestamptz,
    -- The root that certified it; empty for none.
    ADD COLUMN certified_by text NOT NULL DEFAULT '',
    -- The request that made it.
    ADD COLUMN request_id uuid,
    -- The first key of the installation, whatever the clocks said: devices pin it of which nothing else is known.
    ADD COLUMN is_first boolean NOT NULL DEFAULT false,
    -- Until then no device is let in with it, because it is being retired.
    ADD COLUMN ending_until timestamptz,
    ADD COLUMN changed_xid xid8 NOT NULL DEFAULT pg_current_xact_id();
-- Of a retired key nothing is left that signs; the release before opens none but the one that signs.
-- squawk-ignore ban-drop-not-null
ALTER TABLE policy.signing_keys ALTER COLUMN sealed_seed DROP NOT NULL;
UPDATE policy.signing_keys SET is_first = true WHERE signs;
-- squawk-ignore require-concurrent-index-creation
CREATE UNIQUE INDEX signing_keys_one_first ON policy.signing_keys (is_first) WHERE is_first;
-- squawk-ignore require-concurrent-index-creation
CREATE UNIQUE INDEX signing_keys_row ON policy.signing_keys (row_id);
-- squawk-ignore require-concurrent-index-creation
CREATE UNIQUE INDEX signing_keys_one_active ON policy.signing_keys
    (coalesce(tenant_id, '00000000-0000-0000-0000-000000000000')) WHERE state = 'active';
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX signing_keys_feed ON policy.signing_keys (changed_xid, row_id);
CALL evergreen.isolate('policy.signing_keys');

-- The published log of these keys, for ever: what it names tells nobody whose they are.
CREATE TABLE policy.key_log (
    sequence bigint PRIMARY KEY,
    action text NOT NULL,
    -- JSON: the signed envelope, as it is published.
    envelope text NOT NULL,
    -- The SHA-256 of its payload, by which the next entry names it.
    digest text NOT NULL,
    -- The key that it is about.
    key_id text
);
CREATE INDEX key_log_certificates ON policy.key_log (key_id, sequence) WHERE action = 'certify';
GRANT SELECT, INSERT ON policy.key_log TO evergreen_policy;

-- The key that a device pins; NULL for the first key of the installation.
ALTER TABLE policy.memberships ADD COLUMN key_id text;
-- Whether it comes back with its archived organisation.
ALTER TABLE policy.devices ADD COLUMN archived boolean NOT NULL DEFAULT false;
