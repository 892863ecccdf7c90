-- outside a transaction
-- From here on plans know it.
ANALYZE telemetry.device;
ANALYZE telemetry.event;
