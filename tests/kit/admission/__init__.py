"""Tests of `kit.admission`."""
