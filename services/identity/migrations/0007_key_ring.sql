-- Keys can be rotated: when a key signs, and until when what it signed counts. `signs_from` is NULL
-- in rows of 0.1.0, whose keys sign from `created_at` on; it signs with the newest key.
ALTER TABLE identity.signing_key
    ADD COLUMN algorithm text NOT NULL DEFAULT 'ed25519',
    ADD COLUMN tenant_id uuid,
    ADD COLUMN signs_from timestamptz,
    ADD COLUMN verifies_until timestamptz,
    ADD COLUMN request_id uuid;

GRANT DELETE ON identity.signing_key TO evergreen_identity;
GRANT UPDATE (sealed_seed, verifies_until) ON identity.signing_key TO evergreen_identity;
