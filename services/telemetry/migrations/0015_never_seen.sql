-- A device without a state is not healthy: nobody knows. Lists say `warning` for it, and that they do
-- not know. So do the rows that the release before this one inserts.
SELECT set_config('evergreen.scope', '*', true);

ALTER TABLE telemetry.device ALTER COLUMN health SET DEFAULT 'warning';
ALTER TABLE telemetry.device ALTER COLUMN disk_health SET DEFAULT 'warning';
ALTER TABLE telemetry.device ALTER COLUMN battery_health SET DEFAULT 'warning';
-- When the device last enrolled; NULL for one that was prepared and never called.
ALTER TABLE telemetry.device ADD COLUMN enrolled_at timestamptz;

UPDATE telemetry.device
SET health = 'warning', disk_health = 'warning', battery_health = 'warning', enrolled_at = contact_at
WHERE state_received_at IS NULL;
