"""Tests of `services.identity.users`."""
