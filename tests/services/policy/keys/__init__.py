"""Tests of `services.policy.keys`."""
