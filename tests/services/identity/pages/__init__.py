"""Tests of `services.identity.pages`."""
