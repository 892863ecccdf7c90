"""Tests of `cli.backup`."""
