-- Reports: what was asked for, what came of it, and their files in parts (docs/adr/0067).
CREATE TABLE audit.report (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    kind text NOT NULL,
    parameters jsonb NOT NULL,
    formats text[] NOT NULL,
    status text NOT NULL CHECK (status IN ('running', 'ready', 'failed')),
    as_of timestamptz NOT NULL,
    requested_by text NOT NULL,
    -- The tenant of who asked; of a schedule, the schedule's own. Tenants have their turns by it.
    asked_from uuid NOT NULL,
    request_id uuid,
    schedule_id uuid,
    -- Which process makes it; one that died loses it after some seconds, and it begins anew.
    lease uuid,
    lease_until timestamptz,
    attempts integer NOT NULL DEFAULT 0,
    not_before timestamptz,
    -- Since when another service was away for it.
    waiting_since timestamptz,
    finished_at timestamptz,
    rows bigint NOT NULL DEFAULT 0,
    bytes bigint NOT NULL DEFAULT 0,
    manifest text NOT NULL DEFAULT '',
    entry_id uuid,
    error text NOT NULL DEFAULT '',
    expires_at timestamptz NOT NULL
);
CREATE INDEX report_by_tenant ON audit.report (tenant_id, id);
CREATE INDEX report_running ON audit.report (id) WHERE status = 'running';
CREATE INDEX report_asked_from ON audit.report (asked_from) WHERE status = 'running';
CREATE INDEX report_expiry ON audit.report (expires_at);
CREATE INDEX report_by_schedule ON audit.report (schedule_id, id) WHERE schedule_id IS NOT NULL;
CREATE UNIQUE INDEX report_request ON audit.report (tenant_id, request_id) WHERE request_id IS NOT NULL;
CALL evergreen.isolate('audit.report');

CREATE TABLE audit.report_file (
    report_id uuid NOT NULL REFERENCES audit.report ON DELETE CASCADE,
    tenant_id uuid NOT NULL,
    position integer NOT NULL,
    name text NOT NULL,
    media_type text NOT NULL,
    bytes bigint NOT NULL,
    sha256 text NOT NULL,
    PRIMARY KEY (report_id, name)
);
CREATE INDEX report_file_by_tenant ON audit.report_file (tenant_id);
CALL evergreen.isolate('audit.report_file');

CREATE TABLE audit.report_part (
    report_id uuid NOT NULL REFERENCES audit.report ON DELETE CASCADE,
    tenant_id uuid NOT NULL,
    name text NOT NULL,
    part integer NOT NULL CHECK (part >= 0),
    content bytea NOT NULL,
    PRIMARY KEY (report_id, name, part)
);
CREATE INDEX report_part_by_tenant ON audit.report_part (tenant_id);
CALL evergreen.isolate('audit.report_part');

CREATE TABLE audit.report_schedule (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    kind text NOT NULL,
    parameters jsonb NOT NULL,
    formats text[] NOT NULL,
    every text NOT NULL CHECK (every IN ('day', 'week', 'month')),
    on_day integer NOT NULL,
    hour integer NOT NULL CHECK (hour BETWEEN 0 AND 23),
    time_zone text NOT NULL,
    keep integer NOT NULL,
    enabled boolean NOT NULL,
    -- Whose period is reported next; in the past while it could not be.
    next_run_at timestamptz,
    -- Until when it is left alone after a refusal.
    not_before timestamptz,
    last_run_at timestamptz,
    last_error text NOT NULL DEFAULT '',
    revision bigint NOT NULL,
    created_at timestamptz NOT NULL,
    created_by text NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE INDEX report_schedule_by_tenant ON audit.report_schedule (tenant_id, id);
CREATE INDEX report_schedule_due ON audit.report_schedule (next_run_at) WHERE next_run_at IS NOT NULL;
CALL evergreen.isolate('audit.report_schedule');

-- When a report was last begun for a tenant that asks: the one that has waited longest is next.
CREATE TABLE audit.report_turn (
    tenant_id uuid PRIMARY KEY,
    at timestamptz NOT NULL
);
CALL evergreen.isolate('audit.report_turn');

GRANT SELECT, INSERT, UPDATE, DELETE ON
    audit.report, audit.report_file, audit.report_part, audit.report_schedule, audit.report_turn
    TO evergreen_audit;
