"""Tests of `services.identity.sessions`."""
