"""Tests of `services.attestation.evidence`."""
