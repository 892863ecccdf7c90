-- Versions that come to devices in batches (docs/adr/0072). No list says who is in a batch: that follows from a
-- device's id and the salt.
CREATE TABLE policy.rollout (
    -- Among the targets of the profiles of devices that get the version, too.
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    policy_id uuid NOT NULL,
    version bigint NOT NULL,
    -- The groups and devices that the version is for; none for all devices.
    group_ids uuid[] NOT NULL,
    device_ids uuid[] NOT NULL,
    -- JSON: what was in force when it was made. Another version means that somebody published since.
    base text NOT NULL,
    -- JSON: the batches, the limits and the windows.
    plan text NOT NULL,
    note text NOT NULL DEFAULT '',
    urgent boolean NOT NULL,
    salt bytea NOT NULL CHECK (length(salt) = 16),
    state text NOT NULL CHECK (state IN ('AWAITING_APPROVAL', 'SCHEDULED', 'RUNNING', 'PAUSED', 'STOPPED',
        'COMPLETED', 'ROLLED_BACK', 'CANCELED', 'SUPERSEDED')),
    -- Why it is in that state: a word, and a sentence.
    reason text NOT NULL DEFAULT '',
    detail text NOT NULL DEFAULT '',
    -- The batch that was opened last, from 0; -1 for none.
    batch integer NOT NULL DEFAULT -1,
    batch_opened_at timestamptz,
    -- So long devices could get its version until serving_since, since when they can; NULL while they cannot.
    served_for interval NOT NULL DEFAULT '0',
    serving_since timestamptz,
    -- Since when too many devices are silent.
    suspected_at timestamptz,
    -- The last batch that somebody let open.
    approved_batch integer NOT NULL DEFAULT -1,
    -- Devices in the first so many of 10,000 buckets are in open batches, and those in these groups.
    below integer NOT NULL DEFAULT 0 CHECK (below BETWEEN 0 AND 10000),
    open_groups uuid[] NOT NULL DEFAULT '{}',
    -- Whether devices in open batches get it now.
    serves boolean NOT NULL DEFAULT false,
    -- Whether devices that have it keep it.
    holds boolean NOT NULL DEFAULT false,
    -- Whether deliveries look at it.
    live boolean NOT NULL DEFAULT false,
    -- JSON: what was last counted.
    counts text,
    -- When it was looked at last, by whichever process.
    looked_at timestamptz NOT NULL DEFAULT '-infinity',
    created_at timestamptz NOT NULL,
    created_by uuid NOT NULL,
    created_by_name text NOT NULL,
    approved_by uuid,
    approved_by_name text NOT NULL DEFAULT '',
    starts_at timestamptz NOT NULL,
    ended_at timestamptz,
    revision integer NOT NULL DEFAULT 1,
    changed_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    CONSTRAINT rollout_version_exists
        FOREIGN KEY (tenant_id, version) REFERENCES policy.versions (tenant_id, version),
    CONSTRAINT rollout_second_person CHECK (approved_by <> created_by)
);
CREATE INDEX rollout_by_tenant ON policy.rollout (tenant_id, id);
CREATE INDEX rollout_by_version ON policy.rollout (tenant_id, version);
CREATE INDEX rollout_live ON policy.rollout (tenant_id) WHERE live;
CREATE INDEX rollout_feed ON policy.rollout (changed_xid, id);
CALL evergreen.isolate('policy.rollout');

-- What was seen of the devices that a rollout is about; those that it was given to, and the others that polled.
CREATE TABLE policy.rollout_device (
    rollout_id uuid NOT NULL,
    device_id uuid NOT NULL,
    tenant_id uuid NOT NULL,
    seen_at timestamptz NOT NULL,
    -- The first poll since devices can get it (rollout.serving_since): from there on silence is counted.
    met_at timestamptz NOT NULL,
    -- NULL for a device that did not get it yet.
    delivered_at timestamptz,
    deliveries integer NOT NULL DEFAULT 0,
    applied_at timestamptz,
    -- So long it was on since, and could get it: the time between polls that are at most ten minutes apart.
    online interval NOT NULL DEFAULT '0',
    -- When telemetry was last asked for its failures.
    asked_at timestamptz,
    -- When it had again what it is to have without the rollout.
    returned_at timestamptz,
    -- Whether it told of failures since, and of none on the day before.
    trouble boolean NOT NULL DEFAULT false,
    -- Whether it counts no more: an administrator went on all the same.
    excused boolean NOT NULL DEFAULT false,
    PRIMARY KEY (rollout_id, device_id)
);
CREATE INDEX rollout_device_by_device ON policy.rollout_device (device_id);
CREATE INDEX rollout_device_by_tenant ON policy.rollout_device (tenant_id);
CALL evergreen.isolate('policy.rollout_device');

-- How a tenant publishes; it counts for the tenants below, too.
CREATE TABLE policy.setting (
    tenant_id uuid PRIMARY KEY,
    -- Empty for that of the tenant above.
    time_zone text NOT NULL,
    require_approval boolean NOT NULL,
    -- JSON: names and days on which nothing is published.
    freezes text NOT NULL,
    updated_at timestamptz NOT NULL
);
CALL evergreen.isolate('policy.setting');

GRANT SELECT, INSERT, UPDATE ON policy.rollout, policy.setting TO evergreen_policy;
GRANT SELECT, INSERT, UPDATE, DELETE ON policy.rollout_device TO evergreen_policy;
-- Of rollouts that nobody looks at any more.
GRANT DELETE ON policy.profiles TO evergreen_policy;

-- Nor does the release before draw numbers where a version is rolled out: it would bring back what was before.
CREATE OR REPLACE FUNCTION policy.refuse_draw() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM policy.bindings AS b WHERE b.tenant_id = NEW.tenant_id AND b.version IS NOT NULL)
        OR EXISTS (SELECT FROM policy.rollout AS r WHERE r.tenant_id = NEW.tenant_id AND r.live)
        OR EXISTS (SELECT FROM policy.editions AS e
            LEFT JOIN policy.assignments AS a ON a.tenant_id = e.tenant_id
            WHERE e.tenant_id = NEW.tenant_id AND CASE
                WHEN e.own_version IS DISTINCT FROM a.version
                    THEN policy.has_layers_above(e.recipe, e.tenant_id)
                ELSE e.digest IS NOT NULL
                    AND (e.document_tenant, e.digest) <> (NEW.document_tenant, NEW.digest)
            END)
    THEN
        RAISE EXCEPTION 'devices of % are to have what layers make', NEW.tenant_id
            USING ERRCODE = 'lock_not_available';
    END IF;
    RETURN NEW;
END $$;
