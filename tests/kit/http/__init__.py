"""Tests of `kit.http`."""
