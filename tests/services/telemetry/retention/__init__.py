"""Tests of `services.telemetry.retention`."""
