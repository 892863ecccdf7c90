"""Policies on their way to devices."""
