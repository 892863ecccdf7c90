"""Policies of groups and of single devices, and the devices for which they count."""
