"""Tests of `kit.data`."""
