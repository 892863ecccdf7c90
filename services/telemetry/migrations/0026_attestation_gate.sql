-- What organisations ask of their devices' boots, as policy tells it; only of those that ask.
CREATE TABLE telemetry.attestation_gate (
    tenant_id uuid PRIMARY KEY,
    -- The verdicts that are not enough.
    below text[] NOT NULL,
    -- So long after its enrollment a device may be without evidence.
    grace interval NOT NULL
);
CALL evergreen.isolate('telemetry.attestation_gate');
GRANT SELECT, INSERT, UPDATE, DELETE ON telemetry.attestation_gate TO evergreen_telemetry;
