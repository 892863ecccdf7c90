-- Devices that have the other policy of an attestation gate, as policy tells it.
CREATE TABLE telemetry.restricted_device (
    device_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL
);
CREATE INDEX restricted_device_by_tenant ON telemetry.restricted_device (tenant_id);
CALL evergreen.isolate('telemetry.restricted_device');
GRANT SELECT, INSERT, UPDATE, DELETE ON telemetry.restricted_device TO evergreen_telemetry;
