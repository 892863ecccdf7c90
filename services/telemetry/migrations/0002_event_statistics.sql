-- A device belongs to one tenant. Without knowing that, the planner takes the events of a device in
-- its tenant for very few, and sorts all of them for the newest twenty.
CREATE STATISTICS telemetry.event_device_tenant (dependencies)
    ON device_id, tenant_id FROM telemetry.event;
