"""Tests of `services.audit.log`."""
