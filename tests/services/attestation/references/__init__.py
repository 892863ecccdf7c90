"""Tests of `services.attestation.references`."""
