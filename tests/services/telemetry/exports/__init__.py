"""Tests of `services.telemetry.exports`."""
