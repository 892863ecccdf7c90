-- An event credential ends with its holder, who made it or took it over, and after 400 days at most.
SELECT set_config('evergreen.scope', '*', true);

ALTER TABLE identity.event_credential
    ADD COLUMN holder_id uuid,
    ADD COLUMN held_by text,
    ADD COLUMN orphaned_at timestamptz;

UPDATE identity.event_credential c SET holder_id = a.id, held_by = a.email,
    orphaned_at = CASE WHEN a.status = 'disabled' THEN now() END
    FROM identity.account a WHERE a.email = c.created_by;
-- Those that are there have 400 days from now on, so that none ends with the upgrade.
UPDATE identity.event_credential
    SET expires_at = least(expires_at, now() + interval '400 days')
    WHERE revoked_at IS NULL;
