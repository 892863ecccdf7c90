"""Tests of `kit.security`."""
