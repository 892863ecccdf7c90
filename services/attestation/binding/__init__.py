"""Devices' TPMs: which one a device is bound to, and fresh challenges for it."""
