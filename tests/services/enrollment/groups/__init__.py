"""Tests of `services.enrollment.groups`."""
