"""Tests of `kit.messaging`."""
