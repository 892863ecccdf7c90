"""Tests of `kit.observability`."""
