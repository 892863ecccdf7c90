"""Tests of `services.telemetry`."""
