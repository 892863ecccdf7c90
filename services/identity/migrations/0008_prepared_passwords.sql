-- The hash of a password's prepared form (RFC 8265, NFKC), beside that of what was typed, which is all
-- that release 0.1.0 reads. Where the forms are the same, so are the hashes. NULL: not known yet.
ALTER TABLE identity.account ADD COLUMN prepared_hash text;

-- A password that release 0.1.0 sets does not leave the old one's prepared form behind.
CREATE FUNCTION identity.forget_prepared_hash() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    NEW.prepared_hash := NULL;
    RETURN NEW;
END $$;

CREATE TRIGGER account_prepared_hash BEFORE UPDATE ON identity.account
    FOR EACH ROW WHEN (NEW.password_hash IS DISTINCT FROM OLD.password_hash
        AND NEW.prepared_hash IS NOT DISTINCT FROM OLD.prepared_hash)
    EXECUTE FUNCTION identity.forget_prepared_hash();
