"""Stamps, and what devices are answered by them."""
