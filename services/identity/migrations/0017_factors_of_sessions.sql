-- In which session a key that waits, and recovery codes, were made, or in the session that a login that
-- waits is to open. Whoever makes the first factor count has to have made both: somebody else knows them.
ALTER TABLE identity.totp ADD COLUMN session_id uuid;
ALTER TABLE identity.recovery_code ADD COLUMN session_id uuid;

-- From when on Owners and Admins are asked who were asked before others were.
ALTER TABLE identity.sign_in_policy
    ADD COLUMN owners_from timestamptz,
    ADD COLUMN admins_from timestamptz;
