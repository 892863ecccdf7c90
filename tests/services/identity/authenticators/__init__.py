"""Tests of `services.identity.authenticators`."""
