"""Policies of groups and devices."""
