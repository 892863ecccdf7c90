"""Attestation: whether a device booted what it should have.

Owns the verdicts over devices' TPM 2.0 evidence (DeviceService/AttestBoot), each device's latest
and a history, and the nonces and keys that were used. Administrators read them by
AttestationService; telemetry follows them by a feed. HTTP: `/api/v1/devices/attest`. Sends
`attestation.*`; follows enrollment's devices.
"""
