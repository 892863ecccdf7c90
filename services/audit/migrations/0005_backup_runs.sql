-- What `evergreen backup` did: the command writes it as the owner of the schema, the service makes
-- metrics of it. `max_age_seconds` is how old the newest good backup may become, by its schedule.
CREATE TABLE audit.backup_run (
    id uuid PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('backup', 'rehearsal')),
    succeeded boolean NOT NULL,
    started_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL,
    target text NOT NULL,
    name text NOT NULL,
    bytes bigint NOT NULL CHECK (bytes >= 0),
    max_age_seconds bigint NOT NULL CHECK (max_age_seconds > 0),
    detail text NOT NULL
);
CREATE INDEX backup_run_newest ON audit.backup_run (kind, succeeded, started_at DESC);
GRANT SELECT ON audit.backup_run TO evergreen_audit;
