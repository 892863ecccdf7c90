"""Tests of `services.enrollment.admission`."""
