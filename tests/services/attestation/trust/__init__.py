"""Tests of `services.attestation.trust`."""
