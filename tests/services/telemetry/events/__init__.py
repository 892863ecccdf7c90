"""Tests of `services.telemetry.events`."""
