"""Tests of `services.identity.tenants`."""
