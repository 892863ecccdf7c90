"""Tests of `services.policy.delivery`."""
