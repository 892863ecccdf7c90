-- By what a database knows the master key that its private keys are sealed with. A service compares before
-- it makes or opens a key, so that an installation never runs with another key than its own.
CREATE TABLE evergreen.key_check (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    check_value bytea NOT NULL CHECK (octet_length(check_value) = 32),
    noted_at timestamptz NOT NULL DEFAULT now());

GRANT SELECT, INSERT ON evergreen.key_check TO evergreen_identity, evergreen_policy, evergreen_audit;
