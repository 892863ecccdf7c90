-- Keys can be rotated: when a key signs. `signs_from` is NULL in rows of 0.1.0, whose keys sign from
-- `created_at` on; it signs with the newest key. A key of checkpoints verifies for ever.
ALTER TABLE audit.signing_key
    ADD COLUMN purpose text NOT NULL DEFAULT 'audit',
    ADD COLUMN algorithm text NOT NULL DEFAULT 'ed25519',
    ADD COLUMN tenant_id uuid,
    ADD COLUMN signs_from timestamptz,
    ADD COLUMN verifies_until timestamptz,
    ADD COLUMN request_id uuid;

GRANT UPDATE (sealed_seed) ON audit.signing_key TO evergreen_audit;
