"""Telemetry: the latest state of every device, what happened on it, and the fleet as admins see it.

RPCs: DeviceService.ReportState and ReportEvents, InventoryService, EventService.
HTTP: `/api/v1/devices/state`, `/api/v1/devices/events`.
Sends `telemetry.device_events`, batches of stored device events, and
`telemetry.event_retention_updated`; receives no events. Follows the
feeds of the device registry and of applied policy versions.
"""
