-- Devices whose boot fails its check, and passed it before: what alerts are compared with, also
-- while they are paused or off (docs/adr/0075).
CREATE TABLE audit.alert_failed_device (
    tenant_id uuid NOT NULL,
    subject text NOT NULL,
    PRIMARY KEY (tenant_id, subject)
);
CALL evergreen.isolate('audit.alert_failed_device');
GRANT SELECT, INSERT, UPDATE, DELETE ON audit.alert_failed_device TO evergreen_audit;

SELECT set_config('evergreen.scope', '*', true);
INSERT INTO audit.alert_failed_device (tenant_id, subject)
    SELECT tenant_id, subject FROM audit.alert
    WHERE kind = 'attestation-failed' AND resolved_at IS NULL;

-- What a mail tells of, each with a number of mails of its own.
ALTER TABLE audit.notice ADD COLUMN source text NOT NULL DEFAULT '';

-- Since when mails of a tenant are left out, which the daily one makes up for.
ALTER TABLE audit.alert_digest ADD COLUMN left_out_at timestamptz;
