-- After a restore: the next start enters into the log of keys that entries behind the backup's are lost, and
-- goes on above their numbers (docs/adr/0080).
CREATE TABLE policy.key_log_restore (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    -- The last lost entry that the audit log tells of, and the SHA-256 of its payload; 0 and NULL for none.
    lost_sequence bigint NOT NULL,
    lost_digest bytea
);
GRANT SELECT, INSERT, DELETE ON policy.key_log_restore TO evergreen_policy;
