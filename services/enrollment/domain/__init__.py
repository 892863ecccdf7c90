"""Enrollment's types and rules; no infrastructure."""
