-- The fleet as administrators see it: what the registry says of a device, the policy version that
-- it applied, and the state that it reported last. A device that reports before the registry's
-- word has come gets a row from what its token says, which the registry fills in later.
CREATE TABLE telemetry.device (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    registry_status text NOT NULL DEFAULT 'active'
        CHECK (registry_status IN ('pending', 'prepared', 'active', 'rejected', 'decommissioned')),
    -- What lists sort by: the host name where the device reports one, else the serial number.
    name text NOT NULL,
    serial text NOT NULL DEFAULT '',
    model text NOT NULL DEFAULT '',
    registered_at timestamptz NOT NULL,
    policy_version text NOT NULL DEFAULT '',
    -- When the device last called; NULL for one that never did.
    contact_at timestamptz,
    -- The latest state; all NULL, or the zero values, before the first one.
    observed_at timestamptz,
    state_received_at timestamptz,
    -- json, not jsonb: it is only read as a whole.
    installed_apps json,
    update_status text NOT NULL DEFAULT '',
    -- uint64
    disk_total_bytes numeric(20, 0) NOT NULL DEFAULT 0,
    disk_free_bytes numeric(20, 0) NOT NULL DEFAULT 0,
    battery_percent double precision NOT NULL DEFAULT 0,
    last_error text NOT NULL DEFAULT '',
    -- Computed when the state is written, so that lists can filter by them.
    health text NOT NULL DEFAULT 'healthy' CHECK (health IN ('healthy', 'warning', 'critical')),
    disk_health text NOT NULL DEFAULT 'healthy'
        CHECK (disk_health IN ('healthy', 'warning', 'critical')),
    battery_health text NOT NULL DEFAULT 'healthy'
        CHECK (battery_health IN ('healthy', 'warning', 'critical')),
    CHECK ((observed_at IS NULL) = (state_received_at IS NULL))
-- No index covers what a report changes every time, and pages keep room, so that the new version
-- of a row lies beside the old one and no index is touched.
) WITH (fillfactor = 75);
CREATE INDEX device_by_name ON telemetry.device (name, id);
CREATE INDEX device_by_tenant ON telemetry.device (tenant_id, name, id);
CREATE INDEX device_unwell ON telemetry.device (health, name, id) WHERE health <> 'healthy';
CALL evergreen.isolate('telemetry.device');

-- Events, each once per device.
CREATE TABLE telemetry.event (
    device_id uuid NOT NULL,
    event_id text NOT NULL,
    id uuid NOT NULL,
    tenant_id uuid NOT NULL,
    type text NOT NULL,
    severity text NOT NULL CHECK (severity IN ('info', 'warning', 'error')),
    message text NOT NULL,
    -- Exactly as the device wrote it: json keeps the order of keys and numbers of any size.
    payload json,
    occurred_at timestamptz NOT NULL,
    received_at timestamptz NOT NULL,
    -- Rows are their own outbox: the relay reads them by the transaction that stored them.
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (device_id, event_id)
);
CREATE INDEX event_by_time ON telemetry.event (occurred_at, id);
CREATE INDEX event_by_tenant ON telemetry.event (tenant_id, occurred_at, id);
CREATE INDEX event_by_device ON telemetry.event (device_id, occurred_at, id);
CREATE INDEX event_by_commit ON telemetry.event (xid, id);
CALL evergreen.isolate('telemetry.event');

-- Events that break a rule, each once per device, a bounded number of each device's latest.
CREATE TABLE telemetry.quarantined_event (
    device_id uuid NOT NULL,
    -- SHA-256 of the event as it was sent.
    digest bytea NOT NULL CHECK (length(digest) = 32),
    id uuid NOT NULL,
    tenant_id uuid NOT NULL,
    reason text NOT NULL,
    content text NOT NULL,
    received_at timestamptz NOT NULL,
    PRIMARY KEY (device_id, digest)
);
CREATE INDEX quarantined_event_by_id ON telemetry.quarantined_event (id);
CREATE INDEX quarantined_event_by_tenant ON telemetry.quarantined_event (tenant_id, id);
CREATE INDEX quarantined_event_by_device ON telemetry.quarantined_event (device_id, id);
CALL evergreen.isolate('telemetry.quarantined_event');

-- How far the feeds of the other services were read.
CREATE TABLE telemetry.feed_cursor (
    feed text PRIMARY KEY,
    cursor text NOT NULL
);

-- Up to which event everything is published, and the end of the batch that is being published.
-- The end is kept before the first message goes out: after a crash the same batch is cut, and its
-- messages carry the same ids again.
CREATE TABLE telemetry.event_relay (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    stream text NOT NULL,
    done_xid xid8 NOT NULL,
    done_id uuid NOT NULL,
    end_xid xid8 NOT NULL,
    end_id uuid NOT NULL
);

CALL evergreen.add_outbox('telemetry');
CALL evergreen.add_device_access('telemetry');

GRANT SELECT, INSERT, UPDATE ON telemetry.device, telemetry.feed_cursor, telemetry.event_relay
    TO evergreen_telemetry;
GRANT SELECT, INSERT ON telemetry.event TO evergreen_telemetry;
GRANT SELECT, INSERT, DELETE ON telemetry.quarantined_event TO evergreen_telemetry;
