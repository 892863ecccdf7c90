"""Tests of `services.policy`."""
