-- Users are deleted one by one, and move between tenants. Their tombstones say who they were.
ALTER TABLE identity.user_tombstone
    ADD COLUMN role text NOT NULL DEFAULT 'Auditor',
    ADD COLUMN created_at timestamptz NOT NULL DEFAULT now();

-- A session that has ended outlives its user, so that every service hears of it; and stays with the
-- tenant that it was opened in. No release relies on the key: each reads the user it needs by id.
-- squawk-ignore ban-drop-constraint
ALTER TABLE identity.session DROP CONSTRAINT session_account_id_fkey;

GRANT DELETE ON identity.account TO evergreen_identity;
