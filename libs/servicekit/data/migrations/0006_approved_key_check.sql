-- The check of the master key by approved algorithms: the only one that FIPS mode can compute. A process that
-- can compute both notes both (`evergreen.key_check`).
CREATE TABLE evergreen.approved_key_check (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    check_value bytea NOT NULL CHECK (octet_length(check_value) = 32),
    noted_at timestamptz NOT NULL DEFAULT now());

GRANT SELECT, INSERT ON evergreen.approved_key_check TO evergreen_identity, evergreen_policy, evergreen_audit;
