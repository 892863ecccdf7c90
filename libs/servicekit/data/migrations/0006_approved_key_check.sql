-- The check of the master key by approved algorithms, which is the only one that FIPS mode can compute. Who can
-- compute both notes both.
ALTER TABLE evergreen.key_check
    ALTER COLUMN check_value DROP NOT NULL,
    ADD COLUMN approved_check_value bytea
        CONSTRAINT approved_check_value_bytes CHECK (octet_length(approved_check_value) = 32);

GRANT UPDATE (check_value, approved_check_value) ON evergreen.key_check
    TO evergreen_identity, evergreen_policy, evergreen_audit;
