-- Gates that give another policy to devices that fall short of them (docs/adr/0084).
CREATE TABLE policy.gate (
    -- Among the targets of the profile of devices that fall short, too.
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    -- The organisation, for all of its devices, or a group of it.
    target_id uuid NOT NULL,
    mode text NOT NULL CHECK (mode IN ('OFF', 'OBSERVE', 'ENFORCE')),
    -- What is asked of a group. NULL for the organisation: that is in attestation_gate, where an enforced gate
    -- is one that observes for the release before, and one that is OFF there is OFF.
    at_least text CHECK (at_least IN ('SELF_CONSISTENT', 'KNOWN_TPM', 'VERIFIED')),
    grace_hours integer,
    -- What devices get that fall short, in which version.
    otherwise_policy_id uuid,
    otherwise_version bigint,
    -- The share of the devices that may have it.
    max_percent integer CHECK (max_percent BETWEEN 1 AND 100),
    -- Why no more devices get it for now; empty where they do.
    held text NOT NULL DEFAULT '' CHECK (held IN ('', 'SHARE_EXCEEDED', 'RESTORED')),
    updated_at timestamptz NOT NULL,
    changed_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    CONSTRAINT gate_of_target UNIQUE (tenant_id, target_id),
    CONSTRAINT gate_says_what_devices_get
        CHECK (mode <> 'ENFORCE' OR (otherwise_policy_id IS NOT NULL AND otherwise_version IS NOT NULL
            AND max_percent IS NOT NULL)),
    CONSTRAINT gate_version_exists
        FOREIGN KEY (tenant_id, otherwise_version) REFERENCES policy.versions (tenant_id, version)
);
CREATE INDEX gate_by_policy ON policy.gate (tenant_id, otherwise_policy_id);
CREATE INDEX gate_feed ON policy.gate (changed_xid, id);
CALL evergreen.isolate('policy.gate');

-- Devices that have the other policy of a gate, or had it.
CREATE TABLE policy.restricted_device (
    device_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    -- NULL for a device that has its own policy again.
    gate_id uuid,
    since timestamptz NOT NULL,
    changed_xid xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX restricted_device_by_tenant ON policy.restricted_device (tenant_id, device_id);
CREATE INDEX restricted_device_feed ON policy.restricted_device (changed_xid, device_id);
CALL evergreen.isolate('policy.restricted_device');

-- Since when the verdict over evidence is less than it was: the device is not bound to its TPM any more. NULL
-- where the verdict is that of when the evidence came.
ALTER TABLE policy.device_verdict ADD COLUMN lowered_at timestamptz;

GRANT SELECT, INSERT, UPDATE, DELETE ON policy.gate, policy.restricted_device TO evergreen_policy;

-- The release before knows no gates that enforce: it would draw a number for the organisation's policy where a
-- device has the other one. Its devices keep what they have. The error is one after which it does so.
CREATE FUNCTION policy.refuse_draw_behind_gate() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM policy.gate AS g WHERE g.tenant_id = NEW.tenant_id AND g.mode = 'ENFORCE') THEN
        RAISE EXCEPTION 'devices of % are to have what a gate says', NEW.tenant_id
            USING ERRCODE = 'lock_not_available';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse_draw_behind_gate BEFORE INSERT ON policy.stamps FOR EACH ROW
    WHEN (NEW.cause = 'draw' AND NOT NEW.knows_layers AND current_user = 'evergreen_policy')
    EXECUTE FUNCTION policy.refuse_draw_behind_gate();
