"""Tests of `auditlog`."""
