-- Quarantined messages of a deleted tenant go with it; the log itself stays.
GRANT DELETE ON audit.dead_letter TO evergreen_audit;
