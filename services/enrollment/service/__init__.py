"""Enrollment's use cases, one transaction each."""
