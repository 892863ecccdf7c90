"""Devices as the registry has them."""
