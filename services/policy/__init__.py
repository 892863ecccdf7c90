"""Policy: policies, their versions and assignments, the keys that sign them, and their delivery.

RPCs: PolicyService, PolicyKeyService, DeviceService.PullPolicy; for the other services
PolicyInternalService (the envelope for a device that enrolls, and the feeds of applied versions and
of attestation gates).
HTTP: `/api/v1/devices/policy`.
Sends `policy.*` events; receives none. Follows the feeds of identity, of the device registry and of
attestation.
"""
