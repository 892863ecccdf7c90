-- The last version that a device reported while it was to have what that stands for: it may be given the
-- document again. NULL for none. What a device says alone proves nothing (docs/adr/0069).
ALTER TABLE policy.applied_versions ADD COLUMN rightful_version bigint;
