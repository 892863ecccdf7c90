"""Tests of `cli.sim`."""
