-- When a user first had a password of the user's own. From then on an invitation would hand over
-- somebody's account, which takes an Owner. Kept by a trigger, for the last release's services too.
SELECT set_config('evergreen.scope', '*', true);

ALTER TABLE identity.account ADD COLUMN activated_at timestamptz;

-- Of who is invited or disabled without a password it is not known; only of who never changed.
UPDATE identity.account SET activated_at = created_at
    WHERE status = 'active' OR password_hash IS NOT NULL OR updated_at > created_at;

CREATE FUNCTION identity.note_activation() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.activated_at IS NULL
        AND (NEW.status = 'active' OR NEW.password_hash IS NOT NULL) THEN
        NEW.activated_at := now();
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER account_activation BEFORE INSERT OR UPDATE ON identity.account
    FOR EACH ROW EXECUTE FUNCTION identity.note_activation();
