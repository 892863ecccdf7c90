"""Tests of `services.telemetry.reports`."""
