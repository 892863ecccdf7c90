"""Versions that come to devices in batches, and stop by themselves when they do harm."""
