"""Releases: the version, what is recorded, what is published."""
