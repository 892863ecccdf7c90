"""Policy: policies, their versions and assignments, the keys that sign them, and their delivery.

RPCs: PolicyService, PolicyKeyService, DeviceService.PullPolicy; for the other services
PolicyInternalService (the envelope for a device that enrolls, and the feed of applied versions).
HTTP: `/api/v1/devices/policy`.
Sends `policy.*` events; receives none. Follows the feeds of identity and of the device registry.
"""
