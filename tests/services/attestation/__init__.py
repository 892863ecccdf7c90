"""Tests of `services.attestation`."""
