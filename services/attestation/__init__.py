"""Attestation: whether a device booted what it should have.

It will own attestation keys, reference values and verdicts, and take TPM 2.0 evidence. This
release answers its RPCs (AttestationService, DeviceService/AttestBoot) UNIMPLEMENTED, once the
caller has shown to be one who may call them. HTTP: `/api/v1/devices/attest`.
Sends and receives no events.
"""
