"""Tests of `kit`."""
