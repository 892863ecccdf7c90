"""Tests of `kit.rpc`."""
