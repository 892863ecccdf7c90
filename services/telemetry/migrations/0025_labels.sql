-- What the registry says of a device's labels and groups.
ALTER TABLE telemetry.device
    ADD COLUMN labels jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN group_ids uuid[] NOT NULL DEFAULT '{}';
