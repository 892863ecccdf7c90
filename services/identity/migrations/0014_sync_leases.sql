-- A sync holds no connection while it asks: it has a directory until `sync_until`, as the pass `sync_pass`.
ALTER TABLE identity.directory
    ADD COLUMN sync_until timestamptz,
    ADD COLUMN sync_pass uuid,
    -- Whether an Owner waits for it.
    ADD COLUMN sync_asked boolean NOT NULL DEFAULT false;

ALTER TABLE identity.external_identity
    -- When the source was asked for what is known here: an older answer changes nothing.
    ADD COLUMN asked_at timestamptz,
    -- When a sync last took access from the person.
    ADD COLUMN lost_at timestamptz;
