"""Tests of `kit.feeds`."""
