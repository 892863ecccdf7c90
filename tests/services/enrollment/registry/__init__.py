"""Tests of `services.enrollment.registry`."""
