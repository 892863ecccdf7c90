-- The verdict over a device's latest boot, as attestation tells it.
ALTER TABLE telemetry.device
    ADD COLUMN attestation_verdict text NOT NULL DEFAULT 'NONE',
    ADD COLUMN attested_at timestamptz;
