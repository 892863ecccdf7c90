"""Tests of `services.audit.tree`."""
