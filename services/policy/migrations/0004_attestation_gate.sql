-- What verdict over their boots an organisation asks of its devices; without a row, of none.
CREATE TABLE policy.attestation_gate (
    tenant_id uuid PRIMARY KEY,
    mode text NOT NULL,
    at_least text NOT NULL,
    -- So long after its enrollment a device may be without evidence.
    grace_hours integer NOT NULL,
    updated_at timestamptz NOT NULL,
    changed_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    CONSTRAINT attestation_gate_mode_known CHECK (mode IN ('OFF', 'OBSERVE')),
    CONSTRAINT attestation_gate_verdict_known
        CHECK (at_least IN ('SELF_CONSISTENT', 'KNOWN_TPM', 'VERIFIED'))
);
CREATE INDEX attestation_gate_feed ON policy.attestation_gate (changed_xid, tenant_id);
CALL evergreen.isolate('policy.attestation_gate');

-- The verdict over each device's latest boot, as attestation tells it.
CREATE TABLE policy.device_verdict (
    device_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    verdict text NOT NULL,
    attested_at timestamptz NOT NULL
);
CREATE INDEX device_verdict_by_tenant ON policy.device_verdict (tenant_id);
CALL evergreen.isolate('policy.device_verdict');
CREATE TABLE policy.verdict_cursor (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    cursor text NOT NULL
);

ALTER TABLE policy.devices ADD COLUMN enrolled_at timestamptz;
-- How far the registry's feed was read with that column. The last release moves `cursor` alone, and
-- what it read is read once more.
ALTER TABLE policy.devices_cursor ADD COLUMN enrolled_cursor text;

GRANT SELECT, INSERT, UPDATE, DELETE ON policy.attestation_gate, policy.device_verdict
    TO evergreen_policy;
GRANT SELECT, INSERT, UPDATE ON policy.verdict_cursor TO evergreen_policy;
