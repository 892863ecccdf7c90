"""Enrollment tokens."""
