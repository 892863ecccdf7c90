"""Tests of `services.enrollment.tokens`."""
