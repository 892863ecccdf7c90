"""Tests of `services.enrollment`."""
