"""Tests of `services.identity.event_access`."""
