"""Tests of `services.telemetry.inventory`."""
