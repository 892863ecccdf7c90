"""Tests of `services.policy.authoring`."""
