-- An entry can lose its content, by the operator alone, and stays where it is (docs/adr/0076). Releases before
-- read an empty record.
ALTER TABLE audit.entry ADD COLUMN redacted boolean NOT NULL DEFAULT false;
-- What stands for the record in the hash of an entry that had a salt.
ALTER TABLE audit.entry ADD COLUMN record_digest bytea;

-- Lets a row change in one way: its content goes, in a transaction that has announced just this entry. Place,
-- time, action and hashes stay, and the digest is that of the record.
CREATE FUNCTION audit.refuse_other_change() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    digest bytea := CASE WHEN OLD.salt IS NOT NULL THEN sha256(convert_to(
        'evergreen audit record v1' || chr(10) || encode(OLD.salt, 'hex') || chr(10) || OLD.record, 'UTF8'
    )) END;
    content text[] := ARRAY['redacted', 'record', 'actor', 'actor_id', 'resource', 'salt', 'record_digest'];
BEGIN
    IF OLD.redacted
        OR current_setting('evergreen.redacts', true) IS DISTINCT FROM OLD.id::text
        OR to_jsonb(NEW) - content IS DISTINCT FROM to_jsonb(OLD) - content
        OR (NEW.redacted, NEW.record, NEW.actor, NEW.actor_id, NEW.resource, NEW.salt, NEW.record_digest)
            IS DISTINCT FROM (true, '', '', '', '', NULL::bytea, digest)
    THEN
        RAISE EXCEPTION 'the audit log only grows: % on audit.% is refused', TG_OP, TG_TABLE_NAME
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;

DROP TRIGGER only_grows ON audit.entry;
CREATE TRIGGER only_grows BEFORE DELETE OR TRUNCATE ON audit.entry
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();
ALTER TABLE audit.entry ENABLE ALWAYS TRIGGER only_grows;
CREATE TRIGGER only_redacted BEFORE UPDATE ON audit.entry
    FOR EACH ROW EXECUTE FUNCTION audit.refuse_other_change();
ALTER TABLE audit.entry ENABLE ALWAYS TRIGGER only_redacted;

-- Nothing is born redacted: the service writes the columns of an entry, and not these two.
REVOKE INSERT ON audit.entry FROM evergreen_audit;
GRANT INSERT (
    tenant_id, sequence, id, occurred_at, actor, actor_id, action, resource, record, previous_hash, hash, salt
) ON audit.entry TO evergreen_audit;
