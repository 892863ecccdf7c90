"""Devices that enroll: who is admitted, and as what."""
