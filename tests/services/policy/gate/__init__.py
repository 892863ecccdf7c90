"""Tests of `services.policy.orphans`."""
