"""Tests of `services.attestation.binding`."""
