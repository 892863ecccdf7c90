"""Tests of `services.identity`."""
