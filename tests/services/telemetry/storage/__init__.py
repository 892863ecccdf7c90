"""Tests of `services.telemetry.storage`."""
