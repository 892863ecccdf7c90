"""Policies of a tenant as code: planned, applied in one step, and exported."""
