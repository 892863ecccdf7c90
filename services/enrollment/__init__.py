"""Enrollment: what admits devices, the registry of devices, and who of them is locked out.

Owns enrollment tokens and registered devices.
RPCs: EnrollmentTokenService, DeviceRegistryService, DeviceService.EnrollDevice; for the other
services EnrollmentInternalService (the feed of devices).
HTTP: `POST /api/v1/devices/enroll` in the released agent's JSON.
Asks identity for device tokens, and policy for the policy in force and for what devices applied.
Sends `enrollment.*` events; receives none.
"""
