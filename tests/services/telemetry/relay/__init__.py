"""Tests of `services.telemetry.relay`."""
